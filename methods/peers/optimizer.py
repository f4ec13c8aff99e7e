"""AdamW over a peer's weights, as ours has it: fp32 weights and states whatever computes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from odysseus.config.run import RunConfig


class AdamW:
    """PyTorch's fused AdamW. Weights that a peer computes with in bf16 are copies of fp32 ones,
    which it updates with gradients made fp32: what Megatron's optimizer does.

    Args:
        model: With the run's weights in fp32; its parameters become the run's compute dtype, but
            not if they are ``sharded``: FSDP2 casts as it gathers.
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
        groups = [{"params": kind} for kind in kinds if kind]  # one kernel takes one kind
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

    def held(self) -> Iterator[Tensor]:
        yield from self.masters
        for state in self.adamw.state.values():
            yield from state.values()
