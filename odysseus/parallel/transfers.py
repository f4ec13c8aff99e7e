"""Collectives that have begun: what is on its way between ranks, without autograd.

Shapes: S tokens of the whole sequence, s = S/n of this rank, n ranks of the axis. Each runs inside
a profiler region named after its axis's purpose, so that whoever watches from outside (a profiler,
the traffic meter) can tell what it was for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from odysseus.parallel.mesh import Axis


def region(axis: Axis) -> record_function:
    """Names what happens inside after the axis's purpose; costs about a microsecond."""
    return record_function(f"odysseus::{axis.purpose}")


@dataclass(frozen=True)
class Transfer:
    """What is on its way to other ranks, kept alive here, and what comes."""

    sent: Tensor
    received: Tensor
    works: list[dist.Work]

    def wait(self) -> Tensor:
        """What came, when it has come and what was sent has gone."""
        for work in self.works:
            work.wait()
        return self.received


def start_all_reduce_(x: Tensor, axis: Axis) -> Transfer:
    """Begin summing over ranks, in place."""
    with region(axis):
        work = dist.all_reduce(x, group=axis.group, async_op=True)
    assert work is not None
    return Transfer(x, x, [work])


def start_all_gather(x: Tensor, axis: Axis) -> Transfer:
    """Begin gathering into [n, …]; :func:`unstack` it once it has been waited for."""
    sent, gathered = x.contiguous(), x.new_empty((axis.size, *x.shape))
    with region(axis):
        work = dist.all_gather_single(gathered.flatten(0, 1), sent, group=axis.group, async_op=True)
    assert work is not None
    return Transfer(sent, gathered, [work])


def start_reduce_scatter(x: Tensor, axis: Axis, dim: int) -> Transfer:
    """Begin summing; what comes is this rank's shard."""
    stacked = stack(x, axis.size, dim)
    shard = stacked.new_empty(stacked.shape[1:])
    with region(axis):
        work = dist.reduce_scatter_single(
            shard, stacked.flatten(0, 1), group=axis.group, async_op=True
        )
    assert work is not None
    return Transfer(stacked, shard, [work])


def start_hop(x: Tensor, axis: Axis) -> Transfer:
    """Forward: begin passing a contiguous tensor round the axis, each rank's to the next one.
    Backward: none.
    Bytes: the tensor.
    Meaning: a block of the sequence visits every rank in turn."""
    received = torch.empty_like(x)
    after, before = (axis.rank + 1) % axis.size, (axis.rank - 1) % axis.size
    with region(axis):
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, x, group=axis.group, group_peer=after),
                dist.P2POp(dist.irecv, received, group=axis.group, group_peer=before),
            ]
        )
    return Transfer(x, received, works)


def all_reduce_plain(x: Tensor, axis: Axis) -> None:
    """Sum over ranks, in place, for values that autograd does not follow."""
    if axis.size > 1:
        with region(axis):
            dist.all_reduce(x, group=axis.group)


def unstack(x_n: Tensor, dim: int) -> Tensor:
    """[n, …, s, …] to […, n·s, …]: shards of ranks side by side along dim. A view for batch 1."""
    return x_n.movedim(0, dim).flatten(dim, dim + 1)


def stack(x: Tensor, n: int, dim: int) -> Tensor:
    """The inverse of :func:`unstack`, contiguous. No copy for batch 1."""
    return x.unflatten(dim, (n, -1)).movedim(dim, 0).contiguous()
