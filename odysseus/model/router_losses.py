"""The losses of routers: the load-balancing loss and the z loss, over the tokens of all ranks.

The load-balancing loss is E·Σ_e f_e·P_e, with f_e the experts' tokens and P_e their probabilities,
both divided by the tokens of all blocks (Fedus et al., arXiv 2101.03961, eq. 4 to 6; as
Transformers computes it). Its shares f_e have no gradient, but are those of all ranks. They are
known when every block's forward has run: backward adds the loss's gradient to that of the logits.
The z loss is the mean of the squared log-sum-exp of the logits (Zoph et al., arXiv 2202.08906,
eq. 5). T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from odysseus.config.architecture import Architecture


class RouterLosses:
    """The losses of all routers of a model, in one micro step.

    Args:
        architecture: Has the coefficients.
        device: Where sums are kept.
        add: Sums a tensor over all ranks, in place.
        micro_steps: Micro steps per optimizer step; the step's loss is the mean of theirs.
    """

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device,
        add: Callable[[Tensor], object],
        micro_steps: int,
    ) -> None:
        self.architecture, self.add, self.micro_steps = architecture, add, micro_steps
        # Tokens and probability of each expert, the squared log-sum-exps, the number of tokens.
        self.sums = torch.zeros(
            2 * architecture.num_experts + 2, dtype=torch.float64, device=device
        )
        self.summing = False

    @contextmanager
    def over_forward(self) -> Iterator[None]:
        """Sum over one forward and over ranks. A forward that backward repeats is not summed."""
        self.sums.zero_()
        self.summing = True
        try:
            yield
        finally:
            self.summing = False
        self.add(self.sums)

    def of(self, logits_TE: Tensor) -> Tensor:
        """Return the logits; to their gradient, backward adds that of the losses."""
        return _WithLosses.apply(logits_TE, self)

    def value(self) -> Tensor:
        """Return the losses of the last forward times their coefficients, a scalar in fp64."""
        a = self.architecture
        counts_E, probability_E, (squares, tokens) = self.sums.split([*[a.num_experts] * 2, 2])
        balance = a.num_experts * (counts_E * probability_E).sum() / tokens**2
        loss = a.router_aux_loss_coef * balance + a.router_z_loss_coef * squares / tokens
        return loss / self.micro_steps

    @torch.no_grad()
    def note(self, logits_TE: Tensor, experts_TK: Tensor) -> None:
        """Add a router's logits, and the experts that it has chosen, to the sums of a forward."""
        if not self.summing:
            return
        wide_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
        experts = wide_TE.shape[1]
        counts_E, probability_E, others = self.sums.split([experts, experts, 2])
        counts_E += (
            torch.zeros_like(wide_TE).scatter_(1, experts_TK, 1.0).sum(0, dtype=torch.float64)
        )
        probability_E += self._probabilities(wide_TE).sum(0, dtype=torch.float64)
        others[0] += wide_TE.logsumexp(1).square().sum(dtype=torch.float64)
        others[1] += len(wide_TE)

    def gradient(self, logits_TE: Tensor) -> Tensor:
        """Return the gradient of the last forward's losses with respect to logits of it, [T, E]."""
        a, wide = self.architecture, torch.promote_types(logits_TE.dtype, torch.float32)
        counts_E, _, (_, tokens) = self.sums.split([a.num_experts, a.num_experts, 2])
        factor_E = a.router_aux_loss_coef * a.num_experts * counts_E / tokens**2
        with torch.enable_grad():
            leaf_TE = logits_TE.detach().to(wide).requires_grad_()
            loss = (self._probabilities(leaf_TE) * factor_E.to(wide)).sum()
            squares = leaf_TE.logsumexp(1).square().sum()
            loss = loss + squares * (a.router_z_loss_coef / tokens).to(wide)
            (grad_TE,) = torch.autograd.grad(loss / self.micro_steps, leaf_TE)
        return grad_TE.to(logits_TE.dtype)

    def _probabilities(self, wide_TE: Tensor) -> Tensor:
        """[T, E]: scores that sum to 1."""
        if self.architecture.scoring_func == "softmax":
            return torch.softmax(wide_TE, dim=1)
        scores_TE = torch.sigmoid(wide_TE)
        return scores_TE / scores_TE.sum(1, keepdim=True)


class _WithLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_TE: Tensor, losses: RouterLosses) -> Tensor:
        ctx.losses = losses
        ctx.save_for_backward(logits_TE)
        return logits_TE.view_as(logits_TE)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (logits_TE,) = ctx.saved_tensors
        return grads[0] + ctx.losses.gradient(logits_TE), None
