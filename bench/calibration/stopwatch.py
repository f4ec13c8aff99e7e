"""Seconds of what all ranks do at once: rows of calls, of which the slowest rank's count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
import torch.distributed as dist

from bench.meters.device import synchronize

_ROW_S = 0.2
"""How long calls are repeated: longer than an operating system leaves a core to one process."""


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Of one call, of all ranks the slowest: of so many in a row that ranks that share a core have
    each had their turns, the median of some such rows."""
    action()
    calls, rows = _rows_of(action, device)
    return median(_timed(action, calls, device) for _ in range(rows))


def extra_s(more: Callable[[], object], less: Callable[[], object], device: torch.device) -> float:
    """What one action takes beyond another, as :func:`seconds`, their rows in turn: a machine's
    pace changes from row to row. Noise can make it negative."""
    for action in (more, less):
        action()
    calls, rows = _rows_of(more, device)
    return median(a - b for a, b in in_turn((more, less), calls, 2 * rows - 1, device))


def in_turn(
    actions: Sequence[Callable[[], object]], calls: int, rows: int, device: torch.device
) -> Iterator[list[float]]:
    """Seconds a call of every action, a row of each after the other, so many times."""
    for _ in range(rows):
        yield [_timed(action, calls, device) for action in actions]


def _rows_of(action: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """The calls of a row, and how many rows; a call that takes longer is a row, of two."""
    once = _timed(action, 1, device)
    return (1, 2) if once > _ROW_S else (min(10_000, int(_ROW_S / once)), 3)


def _timed(action: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds a call, of the slowest rank; the same on every rank."""
    return of_ranks(own_s(action, calls, device), max)


def own_s(action: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds a call on this rank, while all ranks do it."""
    dist.barrier()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        action()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def of_ranks(mine: float, which: Callable[[list[float]], float]) -> float:
    """The rank's number that counts."""
    ranks = [0.0] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    return which(ranks)
