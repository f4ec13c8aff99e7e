"""A mixture of experts: a router gives each token to a few of many MLPs and adds what they return.

No token is dropped. T tokens, D width, E experts, K experts of a token, R = T·K rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from odysseus.config.architecture import Architecture
from odysseus.model.grouped import GroupedLinear, Rows
from odysseus.model.kernels import Kernels
from odysseus.model.layers import Linear
from odysseus.model.mlp import MLP
from odysseus.model.router_losses import RouterLosses


class Experts(nn.Module):
    """SwiGLU MLPs of experts.

    Args:
        count: Number of experts of this rank.
        width: Intermediate width of each on this rank.
    """

    def __init__(
        self, architecture: Architecture, kernels: Kernels, *, count: int, width: int
    ) -> None:
        super().__init__()
        self.count, self.swiglu = count, kernels.swiglu
        self.gate_up_proj = GroupedLinear(count, architecture.hidden_size, 2 * width)
        self.down_proj = GroupedLinear(count, width, architecture.hidden_size)

    def forward(self, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """[T, D]: the sum of what each token's experts return, times their weights."""
        rows = Rows.by_expert(experts_TK, self.count)
        return rows.collect(self.compute(rows.spread(x_TD), rows.in_order(weights_TK), rows))

    def compute(self, x_RD: Tensor, weight_R1: Tensor, rows: Rows) -> Tensor:
        """[R, D]: what the experts return for rows in their order, times the rows' weights.

        Weights multiply the narrower tensor before the last matmul, so that its output need not be
        kept for backward.
        """
        inner_RI = self.swiglu(self.gate_up_proj(x_RD, rows))
        return self.down_proj(inner_RI * weight_R1, rows)


class MixtureOfExperts(nn.Module):
    """Router, experts, and an MLP for every token if the architecture has one.

    Args:
        experts: This rank's experts; by default all, each with its part of the width.
        shards: Ranks over which the widths of all MLPs are cut.
        enter: Makes the tokens that this rank computes of its stream.
        leave: The inverse, for the output; each rank that shares a width has a partial sum of it.

    Attributes:
        losses: Sums what the router's losses need; None if it has none.
    """

    def __init__(
        self,
        architecture: Architecture,
        kernels: Kernels,
        *,
        experts: Experts | None = None,
        shards: int = 1,
        enter: Callable[[Tensor], Tensor] = lambda x: x,
        leave: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.gate = Linear(a.hidden_size, a.num_experts)
        width = a.intermediate_size // shards
        self.experts = experts or Experts(a, kernels, count=a.num_experts, width=width)
        shared = a.shared_expert_intermediate_size
        self.shared_experts = MLP(a, kernels, shards=shards, width=shared) if shared else None
        self.enter, self.leave = enter, leave
        self.losses: RouterLosses | None = None

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] of [B, S, D], both of this rank's stream."""
        entered = self.enter(x_BSD)
        x_TD = entered.flatten(0, 1)
        logits_TE = self.gate(x_TD)
        if self.losses is not None:
            logits_TE = self.losses.of(logits_TE)
        weights_TK, experts_TK = choose(logits_TE, self.architecture)
        if self.losses is not None:
            self.losses.note(logits_TE, experts_TK)
        # First what all tokens share: recomputation stops at the last tensor that is saved, so
        # experts of other ranks need not return theirs again.
        shared_TD = None if self.shared_experts is None else self.shared_experts(x_TD)
        y_TD = self.experts(x_TD, weights_TK, experts_TK)
        if shared_TD is not None:
            y_TD = y_TD + shared_TD
        return self.leave(y_TD.view_as(entered))


def choose(logits_TE: Tensor, architecture: Architecture) -> tuple[Tensor, Tensor]:
    """Choose each token's experts: those with the largest scores.

    Returns:
        (weights, numbers) of the experts, both [T, K]: weights in the dtype of the logits, scored
        in at least fp32, and numbers in int64.
    """
    scores_TE = scores(logits_TE, architecture)
    weights_TK, experts_TK = scores_TE.topk(architecture.num_experts_per_tok)
    if architecture.norm_topk_prob:
        weights_TK = weights_TK / weights_TK.sum(dim=1, keepdim=True)
    return weights_TK.to(logits_TE.dtype), experts_TK


def scores(logits_TE: Tensor, architecture: Architecture) -> Tensor:
    """[T, E], at least fp32: softmax over experts, or the sigmoid of each logit."""
    wide = torch.promote_types(logits_TE.dtype, torch.float32)
    if architecture.scoring_func == "softmax":
        return torch.softmax(logits_TE, dim=1, dtype=wide)
    return torch.sigmoid(logits_TE.to(wide))


def whole_mlp(architecture: Architecture, kernels: Kernels) -> MLP | MixtureOfExperts:
    """Build a block's MLP or its mixture of experts, with whole weights."""
    build = MixtureOfExperts if architecture.num_experts else MLP
    return build(architecture, kernels)
