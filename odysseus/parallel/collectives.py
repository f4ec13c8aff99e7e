"""Collectives with autograd, each beside its transpose.

Every rank's tensors count as independent variables and the loss as the sum over all ranks, so
backward is the transposed linear map and nothing else: no scale factor anywhere. Shapes: B batch,
S tokens of the whole sequence, s = S/n of this rank, D width, n ranks of the axis. Byte counts
are what one rank sends, by the usual ring convention.

A function `start_…` starts a collective and returns a :class:`Pending`. In backward the autograd
node of `wait` starts the transposed collective, and the node of `start_…` waits for it. So whatever
is computed between the two runs beside the collective, in forward and in backward. The tensor that
connects the two nodes is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from odysseus.model.pending import Pending
from odysseus.parallel import transfers
from odysseus.parallel.mesh import Axis

Start = Callable[[Tensor], Pending]
"""start(x) -> the collective of x, started, without autograd."""


def all_gather(x_BsD: Tensor, axis: Axis, dim: int = 1) -> Tensor:
    """Forward: concatenate the ranks' shards along dim.
    Backward: reduce-scatter.
    Bytes: (n-1)/n of the gathered tensor.
    Meaning: every rank sees the whole sequence."""
    return start_all_gather(x_BsD, axis, dim).wait()


def start_all_gather(x_BsD: Tensor, axis: Axis, dim: int = 1) -> Pending:
    """Start :func:`all_gather`."""
    return _start(x_BsD, axis, _gather(axis, dim), _scatter(axis, dim))


def start_reduce_scatter(x_BSD: Tensor, axis: Axis, dim: int = 1) -> Pending:
    """Forward: sum over ranks, each rank keeps its shard along dim.
    Backward: all-gather.
    Bytes: (n-1)/n of the whole tensor.
    Meaning: partial sums become a sequence shard."""
    return _start(x_BSD, axis, _scatter(axis, dim), _gather(axis, dim))


def start_all_reduce_(x_BSD: Tensor, axis: Axis) -> Pending:
    """Forward: sum over ranks, in place, every rank gets it; no other code may read x.
    Backward: all-reduce.
    Bytes: 2(n-1)/n of the tensor.
    Meaning: partial sums become a replicated stream."""

    def reduce_copy(grad: Tensor) -> Pending:
        # The residual path has the same gradient, so it is summed in a copy.
        return _reduce_(axis)(grad.clone(memory_format=torch.contiguous_format))

    return _start(x_BSD, axis, _reduce_(axis), reduce_copy)


def start_gathered_linear(x_BsD: Tensor, weight_eD: Tensor, axis: Axis) -> Pending:
    """Forward: :func:`all_gather`, then matmul, [B, s, D] to [B, S, e]; keeps only the shard.
    Backward: gathers the shard again beside the matmul of the input's gradient; the reduce-scatter
    of that gradient runs beside the matmul of the weight's gradient.
    Bytes: (n-1)/n of the gathered tensor, twice in backward.
    Meaning: every rank computes on the whole sequence and keeps only its shard."""
    pair = _CollectivePair(_gather(axis, 1), _scatter(axis, 1))
    autograd_edge = _StartNode.apply(x_BsD, pair)
    return Pending(lambda: _GatheredLinear.apply(autograd_edge, x_BsD.detach(), weight_eD, pair))


def all_to_all(x_n: Tensor, axis: Axis) -> Tensor:
    """Forward: slice j of the leading dimension goes to rank j; slice i comes from rank i.
    Backward: all-to-all.
    Bytes: (n-1)/n of this rank's tensor.
    Meaning: the shard moves from one dimension to another."""
    return x_n if axis.size == 1 else _AllToAll.apply(x_n, axis)


def all_to_all_uneven(x: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
    """Forward: `sent[j]` elements of the flat x go to rank j; `received[i]` come from rank i.
    Backward: the same with the two swapped.
    Bytes: this rank's tensor less what it keeps.
    Meaning: the shard moves from one dimension to another that does not divide."""
    return _AllToAllUneven.apply(x, sent, received, axis)


def take_shard(x_BSD: Tensor, axis: Axis, dim: int = 1) -> Tensor:
    """Forward: this rank's slice along dim.
    Backward: zeros where other ranks' slices are.
    Bytes: 0.
    Meaning: a replicated stream becomes a sequence shard."""
    size = x_BSD.shape[dim] // axis.size
    return x_BSD.narrow(dim, axis.rank * size, size)


def sum_gradient_rows(weight: Tensor, first_row: int, axis: Axis, dtype: torch.dtype) -> Tensor:
    """Forward: the unchanged weight.
    Backward: rows from first_row on are summed over the axis and sent in dtype.
    Bytes: 2(n-1)/n of those rows, in backward.
    Meaning: ranks that hold copies of the same rows get the same, complete gradient."""
    return weight if axis.size == 1 else _SumGradientRows.apply(weight, first_row, axis, dtype)


def heads_by_rank(x_BsHK: Tensor, n: int) -> Tensor:
    """[n, B, s, h, K]: the heads that each of n ranks computes. A kv head that several ranks need
    appears once per rank. A view where each head has one rank."""
    copies = max(1, n // x_BsHK.shape[2])
    if copies == 1:
        return x_BsHK.unflatten(2, (n, -1)).movedim(2, 0)
    x_BsGcK = x_BsHK.unsqueeze(3).expand(-1, -1, -1, copies, -1)
    return x_BsGcK.movedim((2, 3), (0, 1)).flatten(0, 1).unsqueeze(3)


class _CollectivePair:
    """A collective of forward and its transpose in backward.

    Attributes:
        pending: The one of the two that has been started.
    """

    pending: Pending

    def __init__(self, forward: Start, backward: Start) -> None:
        self.forward, self.backward = forward, backward

    def wait(self) -> Tensor:
        result = self.pending.wait()
        del self.pending  # and its buffers
        return result


def _start(x: Tensor, axis: Axis, forward: Start, backward: Start) -> Pending:
    """Start a collective that backward transposes; on an axis of one rank, x is the result."""
    if axis.size == 1:
        return Pending(lambda: x)
    pair = _CollectivePair(forward, backward)
    autograd_edge = _StartNode.apply(x, pair)
    return Pending(lambda: _WaitNode.apply(autograd_edge, pair))


def _gather(axis: Axis, dim: int) -> Start:
    def start(x: Tensor) -> Pending:
        gathered = transfers.start_all_gather(x, axis)
        return Pending(lambda: transfers.unstack(gathered.wait(), dim))

    return start


def _scatter(axis: Axis, dim: int) -> Start:
    return lambda x: transfers.start_reduce_scatter(x, axis, dim)


def _reduce_(axis: Axis) -> Start:
    return lambda x: transfers.start_all_reduce_(x, axis)


class _StartNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pair: _CollectivePair) -> Tensor:
        ctx.pair = pair
        pair.pending = pair.forward(x)
        return x.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.pair.wait(), None


class _WaitNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, autograd_edge: Tensor, pair: _CollectivePair) -> Tensor:
        ctx.pair = pair
        return pair.wait()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        ctx.pair.pending = ctx.pair.backward(grad)
        return grad.new_empty(0), None


class _GatheredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, autograd_edge: Tensor, x_BsD: Tensor, weight_eD: Tensor, pair: _CollectivePair
    ) -> Tensor:
        ctx.save_for_backward(x_BsD, weight_eD)
        ctx.pair = pair
        return F.linear(pair.wait(), weight_eD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (grad_BSe,) = grads
        x_BsD, weight_eD = ctx.saved_tensors
        pair: _CollectivePair = ctx.pair
        gathered = pair.forward(x_BsD)
        grad_BSD = grad_BSe @ weight_eD
        x_BSD = gathered.wait()
        del gathered  # and the tensor that it has sent
        pair.pending = pair.backward(grad_BSD)
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


class _AllToAllUneven(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
        ctx.given = sent, received, axis
        result = x.new_empty(sum(received))
        with transfers.region(axis):
            dist.all_to_all_single(result, x.contiguous(), received, sent, group=axis.group)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,), (sent, received, axis) = grads, ctx.given
        return _AllToAllUneven.forward(ctx, grad, received, sent, axis), None, None, None


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
