"""AdamW for a peer's weights: like this project's, with fp32 weights and states in every dtype."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from odysseus.config.run import RunConfig


class AdamW:
    """PyTorch's fused AdamW on fp32 weights.

    Weights that compute in bf16 are copies of fp32 master weights. A step casts their gradients to
    fp32, updates the master weights and copies them back, as Megatron's optimizer does.

    Args:
        model: Model with the run's weights in fp32. Its parameters are cast to the run's compute
            dtype, unless they are ``sharded``.
        sharded: Whether FSDP2 holds the parameters and casts them when it gathers them.
    """

    def __init__(self, model: nn.Module, run: RunConfig, sharded: bool = False) -> None:
        self.weights = self.masters = list(model.parameters())
        if run.compute_dtype != run.master_dtype and not sharded:
            self.masters = [nn.Parameter(weight.detach().clone()) for weight in self.weights]
            model.to(run.compute_dtype)
            self.weights = list(model.parameters())
        kinds = [
            [p for p in self.masters if isinstance(p, DTensor) == cut] for cut in (True, False)
        ]
        groups = [{"params": kind} for kind in kinds if kind]  # a fused kernel takes one kind
        self.adamw = torch.optim.AdamW(groups, lr=run.optimizer.learning_rate, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        if self.masters is self.weights:
            self.adamw.step()
            return
        for master, weight in zip(self.masters, self.weights, strict=True):
            assert weight.grad is not None
            master.grad, weight.grad = weight.grad.to(master.dtype), None
        self.adamw.step()
        for master, weight in zip(self.masters, self.weights, strict=True):
            weight.copy_(master)

    def zero_grad(self) -> None:
        for parameter in (*self.masters, *self.weights):
            parameter.grad = None

    def state_tensors(self) -> Iterator[Tensor]:
        yield from self.masters
        for state in self.adamw.state.values():
            yield from state.values()
