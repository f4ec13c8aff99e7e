"""Collectives that autograd can go back through, each beside its transpose.

Every rank's tensors count as independent variables and the loss as the sum over all ranks, so
backward is the transposed linear map and nothing else: no scale factor anywhere. Shapes: B batch,
S tokens of the whole sequence, s = S/n of this rank, D width, n ranks of the axis. Byte counts
are what one rank sends, by the usual ring convention.

What begins a collective returns what waits for it. In backward the place that waited begins the
transposed collective, and the place that began waits for it: whatever computes between the two runs
beside the collective, forward and backward. What autograd passes between them is an empty tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from odysseus.parallel import transfers
from odysseus.parallel.mesh import Axis

Landing = Callable[[], Tensor]
"""landing() -> the result, once it has come; to be called once."""

Begin = Callable[[Tensor], Landing]


def all_gather(x_BsD: Tensor, axis: Axis, dim: int = 1) -> Tensor:
    """Forward: concatenate the ranks' shards along dim.
    Backward: reduce-scatter.
    Bytes: (n-1)/n of the gathered tensor.
    Meaning: every rank sees the whole sequence."""
    return begin_all_gather(x_BsD, axis, dim)()


def begin_all_gather(x_BsD: Tensor, axis: Axis, dim: int = 1) -> Landing:
    """As :func:`all_gather`, begun."""
    return _through(x_BsD, axis, _gather(axis, dim), _scatter(axis, dim))


def begin_reduce_scatter(x_BSD: Tensor, axis: Axis, dim: int = 1) -> Landing:
    """Forward: sum over ranks, each rank keeps its shard along dim.
    Backward: all-gather.
    Bytes: (n-1)/n of the whole tensor.
    Meaning: partial sums become a sequence shard."""
    return _through(x_BSD, axis, _scatter(axis, dim), _gather(axis, dim))


def begin_all_reduce_(x_BSD: Tensor, axis: Axis) -> Landing:
    """Forward: sum over ranks, in place, every rank gets it; nobody else reads x.
    Backward: all-reduce.
    Bytes: 2(n-1)/n of the tensor.
    Meaning: partial sums become a replicated stream."""

    def of_copy(grad: Tensor) -> Landing:
        # The gradient is also the residual path's, so it is summed in a copy.
        return _reduce_(axis)(grad.clone(memory_format=torch.contiguous_format))

    return _through(x_BSD, axis, _reduce_(axis), of_copy)


def begin_gathered_linear(x_BsD: Tensor, weight_eD: Tensor, axis: Axis) -> Landing:
    """Forward: :func:`all_gather`, then matmul, [B, s, D] to [B, S, e]; keeps the shard alone.
    Backward: gathers it again, behind the input gradient's matmul; the reduce-scatter of that
    gradient runs behind the weight gradient's.
    Bytes: (n-1)/n of the gathered tensor, twice in backward.
    Meaning: every rank works on the whole sequence and keeps none of it."""
    flight = _Flight(_gather(axis, 1), _scatter(axis, 1))
    token = _Begin.apply(x_BsD, flight)
    return lambda: _GatheredLinear.apply(token, x_BsD.detach(), weight_eD, flight)


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


def heads_by_rank(x_BsHK: Tensor, n: int) -> Tensor:
    """[n, B, s, h, K]: the heads that each of n ranks computes, as a view. A kv head that several
    ranks need appears once for each of them, and no more often."""
    copies = max(1, n // x_BsHK.shape[2])
    if copies == 1:
        return x_BsHK.unflatten(2, (n, -1)).movedim(2, 0)
    x_BsGcK = x_BsHK.unsqueeze(3).expand(-1, -1, -1, copies, -1)
    return x_BsGcK.movedim((2, 3), (0, 1)).flatten(0, 1).unsqueeze(3)


class _Flight:
    """A collective on its way.

    Attributes:
        landing: Of the one that has begun, there or back.
    """

    landing: Landing

    def __init__(self, there: Begin, back: Begin) -> None:
        self.there, self.back = there, back

    def land(self) -> Tensor:
        result = self.landing()
        del self.landing  # and the buffers that it has
        return result


def _through(x: Tensor, axis: Axis, there: Begin, back: Begin) -> Landing:
    if axis.size == 1:
        return lambda: x
    flight = _Flight(there, back)
    token = _Begin.apply(x, flight)
    return lambda: _End.apply(token, flight)


def _gather(axis: Axis, dim: int) -> Begin:
    def begin(x: Tensor) -> Landing:
        transfer = transfers.start_all_gather(x, axis)
        return lambda: transfers.unstack(transfer.wait(), dim)

    return begin


def _scatter(axis: Axis, dim: int) -> Begin:
    return lambda x: transfers.start_reduce_scatter(x, axis, dim).wait


def _reduce_(axis: Axis) -> Begin:
    return lambda x: transfers.start_all_reduce_(x, axis).wait


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, flight: _Flight) -> Tensor:
        ctx.flight = flight
        flight.landing = flight.there(x)
        return x.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.flight.land(), None


class _End(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, flight: _Flight) -> Tensor:
        ctx.flight = flight
        return flight.land()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        ctx.flight.landing = ctx.flight.back(grad)
        return grad.new_empty(0), None


class _GatheredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, token: Tensor, x_BsD: Tensor, weight_eD: Tensor, flight: _Flight
    ) -> Tensor:
        ctx.save_for_backward(x_BsD, weight_eD)
        ctx.flight = flight
        return F.linear(flight.land(), weight_eD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (grad_BSe,) = grads
        x_BsD, weight_eD = ctx.saved_tensors
        flight: _Flight = ctx.flight
        gathered = flight.there(x_BsD)
        grad_BSD = grad_BSe @ weight_eD
        x_BSD = gathered()
        del gathered  # and with it what was sent
        flight.landing = flight.back(grad_BSD)
        del grad_BSD
        grad_eD = grad_BSe.flatten(0, 1).T @ x_BSD.flatten(0, 1)
        return grad_eD.new_empty(0), None, grad_eD, None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        x = x.contiguous()
        received = torch.empty_like(x)
        with transfers.region(axis):
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
        transfers.all_reduce_plain(rows, ctx.axis)
        grad[ctx.first_row :] = rows
        return grad, None, None, None
