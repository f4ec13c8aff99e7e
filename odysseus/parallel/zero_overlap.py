"""ZeRO-3 that communicates during computation on a device without streams.

FSDP2 hides gathers and reductions on CUDA's streams. On a CPU it waits for each one at once. Here a
unit's weights are gathered while the previous unit computes, and its gradients are reduced while
the next unit's gradients are computed. At most one more unit is held: the next one in forward (in
backward FSDP2 holds it too), and the last block's weights while the loss is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from odysseus.config.groups import Zero
from odysseus.parallel import fsdp_internals
from odysseus.parallel.fsdp_internals import FSDPParamGroup, ReduceScatter


def check(run: Zero, on_gpu: bool) -> None:
    """Raise ValueError if the run cannot have `zero_engine` overlap."""
    if run.zero_engine != "overlap":
        return
    if on_gpu:
        raise ValueError(
            "zero_engine = overlap is for ranks on CPUs; valid on a GPU, where FSDP2's streams "
            "overlap by themselves: fsdp2"
        )
    for name, value, valid in (
        ("zero_prefetch", run.zero_prefetch, True),
        ("reduce_bucket_size", run.reduce_bucket_size, 0),
    ):
        if value != valid:
            raise ValueError(
                f"zero_engine = overlap gathers ahead and reduces a unit at once, not with {name} "
                f"= {value}; valid: {name} = {valid}, or zero_engine = fsdp2"
            )


def overlap(root: nn.Module, units: Iterable[nn.Module]) -> None:
    """Have a model's ZeRO collectives run beside its computation.

    Args:
        root: The sharded model.
        units: One sharded module per unit, in the order of forward.
    """
    sharded = [module for module in units if isinstance(module, FSDPModule)]
    assert isinstance(root, FSDPModule)
    fsdp_internals.gather_on_current_stream(root)
    for unit, following in pairwise(sharded):
        unit.set_modules_to_forward_prefetch([following])
    in_flight: list[dist.Work] = []
    for unit in sharded:
        for group in fsdp_internals.parameter_groups(unit):
            reduce_scatter = _BackgroundReduceScatter(group, in_flight)
            fsdp_internals.set_reduce_scatter(group, reduce_scatter)


class _BackgroundReduceScatter(ReduceScatter):
    """Starts a group's reduction and waits for it when the next unit's starts or backward ends.

    Args:
        in_flight: The started reductions of all groups; they share this list.
    """

    def __init__(self, group: FSDPParamGroup, in_flight: list[dist.Work]) -> None:
        self.group, self.in_flight = group, in_flight

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Allocate a buffer, before which the previous unit's reduction ends and frees its own."""
        if fsdp_internals.is_reduced_first(self.group):
            self._wait()
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        work = dist.reduce_scatter_single(
            output_tensor, input_tensor, group=group, op=op, async_op=True
        )
        assert work is not None
        if not self.in_flight:
            fsdp_internals.call_after_backward(self._wait)
        self.in_flight.append(work)
        shards = fsdp_internals.sharded_parameters(self.group)
        # FSDP2 adds the sum to a gradient, or converts it, at once; or a hook takes it.
        if any(
            p.grad is not None
            or p.grad_dtype != output_tensor.dtype
            or fsdp_internals.has_gradient_hooks(p)
            for p in shards
        ):
            self._wait()

    def _wait(self) -> None:
        while self.in_flight:
            self.in_flight.pop(0).wait()
