"""Collectives that autograd can go back through, each beside its transpose.

Every rank's tensors count as independent variables and the loss as the sum over all ranks, so
backward is the transposed linear map and nothing else: no scale factor anywhere. Shapes: B batch,
S tokens of the whole sequence, s = S/n of this rank, D width, n ranks of the axis. Byte counts
are what one rank sends, by the usual ring convention.

Each runs inside a profiler region named after its axis's purpose, so that whoever watches from
outside (a profiler, the traffic meter) can tell what it was for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from odysseus.mesh import Axis


def region(axis: Axis) -> record_function:
    """Names what happens inside after the axis's purpose; costs about a microsecond."""
    return record_function(f"odysseus::{axis.purpose}")


def all_gather(x_BsD: Tensor, axis: Axis, dim: int = 1) -> Tensor:
    """Forward: concatenate the ranks' shards along dim.
    Backward: reduce-scatter.
    Bytes: (n-1)/n of the gathered tensor.
    Meaning: every rank sees the whole sequence."""
    return x_BsD if axis.size == 1 else _AllGather.apply(x_BsD, axis, dim)


def reduce_scatter(x_BSD: Tensor, axis: Axis, dim: int = 1) -> Tensor:
    """Forward: sum over ranks, each rank keeps its shard along dim.
    Backward: all-gather.
    Bytes: (n-1)/n of the whole tensor.
    Meaning: partial sums become a sequence shard."""
    return x_BSD if axis.size == 1 else _ReduceScatter.apply(x_BSD, axis, dim)


def all_reduce_(x_BSD: Tensor, axis: Axis) -> Tensor:
    """Forward: sum over ranks, in place, every rank gets it.
    Backward: all-reduce.
    Bytes: 2(n-1)/n of the tensor.
    Meaning: partial sums become a replicated stream."""
    return x_BSD if axis.size == 1 else _AllReduce.apply(x_BSD, axis)


def all_to_all(x_n: Tensor, axis: Axis) -> Tensor:
    """Forward: slice j of the leading dimension goes to rank j; slice i comes from rank i.
    Backward: all-to-all.
    Bytes: (n-1)/n of this rank's tensor.
    Meaning: the shard moves from one dimension to another."""
    return x_n if axis.size == 1 else _AllToAll.apply(x_n, axis)


def take_shard(x_BSD: Tensor, axis: Axis, dim: int = 1) -> Tensor:
    """Forward: this rank's slice along dim.
    Backward: zeros where other ranks' slices are.
    Bytes: 0.
    Meaning: a replicated stream becomes a sequence shard."""
    size = x_BSD.shape[dim] // axis.size
    return x_BSD.narrow(dim, axis.rank * size, size)


def sum_gradient_rows(weight: Tensor, first_row: int, axis: Axis, dtype: torch.dtype) -> Tensor:
    """Forward: the weight as it is.
    Backward: rows from first_row on are summed over the axis, travelling in dtype.
    Bytes: 2(n-1)/n of those rows, in backward.
    Meaning: ranks that hold copies of the same rows get the same, whole gradient."""
    return weight if axis.size == 1 else _SumGradientRows.apply(weight, first_row, axis, dtype)


def all_reduce_plain(x: Tensor, axis: Axis) -> None:
    """Sum over ranks, in place, for values that autograd does not follow."""
    if axis.size > 1:
        with region(axis):
            dist.all_reduce(x, group=axis.group)


def start_all_gather(x: Tensor, axis: Axis) -> tuple[Tensor, dist.Work]:
    """Begin gathering into [n, …]; :func:`unstack` it once the work has been waited for."""
    gathered = x.new_empty((axis.size, *x.shape))
    with region(axis):
        work = dist.all_gather_single(
            gathered.flatten(0, 1), x.contiguous(), group=axis.group, async_op=True
        )
    assert work is not None
    return gathered, work


def start_reduce_scatter(x: Tensor, axis: Axis, dim: int) -> tuple[Tensor, dist.Work]:
    """Begin summing; the result is this rank's shard once the work is waited for."""
    stacked = stack(x, axis.size, dim)
    shard = stacked.new_empty(stacked.shape[1:])
    with region(axis):
        work = dist.reduce_scatter_single(
            shard, stacked.flatten(0, 1), group=axis.group, async_op=True
        )
    assert work is not None
    return shard, work


@dataclass(frozen=True)
class Hop:
    """Something on its way to the next rank of an axis, kept alive here, and what comes."""

    sent: Tensor
    received: Tensor
    works: list[dist.Work]

    def wait(self) -> Tensor:
        """What came, when it has come and what was sent has gone."""
        for work in self.works:
            work.wait()
        return self.received


def start_hop(x: Tensor, axis: Axis) -> Hop:
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
    return Hop(x, received, works)


def unstack(x_n: Tensor, dim: int) -> Tensor:
    """[n, …, s, …] to […, n·s, …]: shards of ranks side by side along dim. A view for batch 1."""
    return x_n.movedim(0, dim).flatten(dim, dim + 1)


def stack(x: Tensor, n: int, dim: int) -> Tensor:
    """The inverse of :func:`unstack`, contiguous. No copy for batch 1."""
    return x.unflatten(dim, (n, -1)).movedim(dim, 0).contiguous()


def heads_by_rank(x_BsHK: Tensor, n: int) -> Tensor:
    """[n, B, s, h, K]: the heads that each of n ranks computes, as a view. A kv head that several
    ranks need appears once for each of them, and no more often."""
    copies = max(1, n // x_BsHK.shape[2])
    if copies == 1:
        return x_BsHK.unflatten(2, (n, -1)).movedim(2, 0)
    x_BsGcK = x_BsHK.unsqueeze(3).expand(-1, -1, -1, copies, -1)
    return x_BsGcK.movedim((2, 3), (0, 1)).flatten(0, 1).unsqueeze(3)


def _gather(x: Tensor, axis: Axis, dim: int) -> Tensor:
    gathered, work = start_all_gather(x, axis)
    work.wait()
    return unstack(gathered, dim)


def _scatter(x: Tensor, axis: Axis, dim: int) -> Tensor:
    shard, work = start_reduce_scatter(x, axis, dim)
    work.wait()
    return shard


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _gather(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return _scatter(grad, ctx.axis, ctx.dim), None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _scatter(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return _gather(grad, ctx.axis, ctx.dim), None, None


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        ctx.mark_dirty(x)
        all_reduce_plain(x, axis)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        # The gradient is also the residual path's, so it is summed in a copy.
        total = grad.clone(memory_format=torch.contiguous_format)
        all_reduce_plain(total, ctx.axis)
        return total, None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        x = x.contiguous()
        received = torch.empty_like(x)
        with region(axis):
            dist.all_to_all_single(received, x, group=axis.group)
        return received

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return _AllToAll.forward(ctx, grad, ctx.axis), None


class _SumGradientRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, first_row: int, axis: Axis, dtype: torch.dtype) -> Tensor:
        ctx.first_row, ctx.axis, ctx.dtype = first_row, axis, dtype
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        grad = grad.clone(memory_format=torch.contiguous_format)
        rows = grad[ctx.first_row :].to(ctx.dtype)
        all_reduce_plain(rows, ctx.axis)
        grad[ctx.first_row :] = rows
        return grad, None, None, None
