"""Time an action on all ranks at once, in batches of calls; the slowest rank counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
import torch.distributed as dist

from bench.meters.device import synchronize

_BATCH_S = 0.2
"""Seconds of a batch of calls: longer than a time slice of the operating system."""


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Return seconds per call on the slowest rank: the median over batches of calls.

    A batch is so long that ranks that share a core all run in it.
    """
    action()
    calls, batches = _batches_of(action, device)
    return median(_timed(action, calls, device) for _ in range(batches))


def extra_s(more: Callable[[], object], less: Callable[[], object], device: torch.device) -> float:
    """Return the extra seconds per call of one action over another.

    It is measured like :func:`seconds`, batches of both in turn, because a machine's speed changes
    from batch to batch. Noise can make it negative.
    """
    for action in (more, less):
        action()
    calls, rows = _batches_of(more, device)
    return median(a - b for a, b in in_turn((more, less), calls, 2 * rows - 1, device))


def in_turn(
    actions: Sequence[Callable[[], object]], calls: int, batches: int, device: torch.device
) -> Iterator[list[float]]:
    """Yield the seconds per call of every action, from one batch of each at a time."""
    for _ in range(batches):
        yield [_timed(action, calls, device) for action in actions]


def _batches_of(action: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Return the calls per batch and the number of batches; a longer call is a batch itself."""
    once = _timed(action, 1, device)
    return (1, 2) if once > _BATCH_S else (min(10_000, int(_BATCH_S / once)), 3)


def _timed(action: Callable[[], object], calls: int, device: torch.device) -> float:
    """Return the seconds per call of the slowest rank; the same on every rank."""
    return reduce_over_ranks(own_s(action, calls, device), max)


def own_s(action: Callable[[], object], calls: int, device: torch.device) -> float:
    """Return the seconds per call on this rank, while all ranks call it."""
    dist.barrier()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        action()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def reduce_over_ranks(own: float, which: Callable[[list[float]], float]) -> float:
    """Reduce a number over all ranks, for example by max; the same on every rank."""
    ranks = [0.0] * dist.get_world_size()
    dist.all_gather_object(ranks, own)
    return which(ranks)
