"""Started transfers between ranks, without autograd.

Each runs in a profiler region named after the purpose of its axis, so that a profiler or the
traffic meter can tell what it was for. Shapes: S tokens of the whole sequence, s = S/n of this
rank, n ranks of the axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from odysseus.model.pending import Pending
from odysseus.parallel.mesh import Axis


def region(axis: Axis) -> record_function:
    """Name what runs inside after the purpose of the axis; costs about a microsecond."""
    return record_function(f"odysseus::{axis.purpose}")


def start_all_reduce_(x: Tensor, axis: Axis) -> Pending:
    """Start summing over the ranks, in place."""
    with region(axis):
        work = dist.all_reduce(x, group=axis.group, async_op=True)
    assert work is not None
    return _pending([work], x, x)


def start_all_gather(x: Tensor, axis: Axis) -> Pending:
    """Start gathering into [n, …]; the caller puts the result in order with :func:`unstack`."""
    sent, gathered = x.contiguous(), x.new_empty((axis.size, *x.shape))
    with region(axis):
        work = dist.all_gather_single(gathered.flatten(0, 1), sent, group=axis.group, async_op=True)
    assert work is not None
    return _pending([work], sent, gathered)


def start_reduce_scatter(x: Tensor, axis: Axis, dim: int) -> Pending:
    """Start summing over the ranks; the result is this rank's shard along dim."""
    stacked = stack(x, axis.size, dim)
    shard = stacked.new_empty(stacked.shape[1:])
    with region(axis):
        work = dist.reduce_scatter_single(
            shard, stacked.flatten(0, 1), group=axis.group, async_op=True
        )
    assert work is not None
    return _pending([work], stacked, shard)


def start_hop(x: Tensor, axis: Axis) -> Pending:
    """Start passing a contiguous tensor to the next rank of the axis and receiving the previous
    rank's; bytes sent: the tensor."""
    received = torch.empty_like(x)
    after, before = (axis.rank + 1) % axis.size, (axis.rank - 1) % axis.size
    with region(axis):
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, x, group=axis.group, group_peer=after),
                dist.P2POp(dist.irecv, received, group=axis.group, group_peer=before),
            ]
        )
    return _pending(works, x, received)


def start_broadcast_(x: Tensor, owner: int, axis: Axis) -> Pending:
    """Start giving every rank the tensor of one rank of the axis, in place on the others."""
    with region(axis):
        work = dist.broadcast(x, group=axis.group, group_src=owner, async_op=True)
    assert work is not None
    return _pending([work], x, x)


def start_reduce_(x: Tensor, owner: int, axis: Axis) -> Pending:
    """Start summing over the ranks, in place on one rank of the axis; the others' result has no
    meaning."""
    with region(axis):
        work = dist.reduce(x, group=axis.group, group_dst=owner, async_op=True)
    assert work is not None
    return _pending([work], x, x)


def rotated(x: Tensor, axis: Axis) -> Iterator[tuple[int, Tensor]]:
    """Yield every rank's tensor with the rank, own one first, while the next is sent: n-1 hops."""
    for step in range(axis.size):
        hop = start_hop(x, axis) if step < axis.size - 1 else None
        yield (axis.rank - step) % axis.size, x
        if hop is not None:
            x = hop.wait()
            del hop  # and the tensor that it has sent


def reduced_at_owner(parts: Iterable[Tensor], axis: Axis) -> Tensor:
    """Sum what all ranks compute from each tensor of :func:`rotated`, at the rank it came from.

    A sum follows its tensor one step behind, from the first rank that the tensor is sent to: n-1
    hops.

    Args:
        parts: This rank's parts of the sums, in the order of :func:`rotated`; they are written to.
    """
    parts = iter(parts)
    own, hop = next(parts), None
    for part in parts:
        hop = start_hop(part if hop is None else part.add_(hop.wait()), axis)
    return own if hop is None else own.add_(hop.wait())


def _pending(works: list[dist.Work], sent: Tensor, received: Tensor) -> Pending:
    return Pending(partial(_wait, works, sent, received))


def _wait(works: list[dist.Work], sent: Tensor, received: Tensor) -> Tensor:
    """Wait for the transfer and return the received tensor; `sent` must live until then."""
    for work in works:
        work.wait()
    return received


def all_reduce_plain(
    x: Tensor, axis: Axis, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
) -> None:
    """Sum over the ranks (or reduce by another op), in place, values outside of autograd."""
    if axis.size > 1:
        with region(axis):
            dist.all_reduce(x, op, axis.group)


def all_to_all_plain(x_n: Tensor, axis: Axis) -> Tensor:
    """Send row j of [n, …] to rank j, outside of autograd; row i of the result is rank i's."""
    received = torch.empty_like(x_n)
    with region(axis):
        dist.all_to_all_single(received, x_n.contiguous(), group=axis.group)
    return received


def unstack(x_n: Tensor, dim: int) -> Tensor:
    """[n, …, s, …] to […, n·s, …]: the ranks' shards side by side along dim. A view for batch 1."""
    return x_n.movedim(0, dim).flatten(dim, dim + 1)


def stack(x: Tensor, n: int, dim: int) -> Tensor:
    """The inverse of :func:`unstack`, contiguous. No copy for batch 1."""
    return x.unflatten(dim, (n, -1)).movedim(dim, 0).contiguous()
