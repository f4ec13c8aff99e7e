"""Load of a machine: the cores that processes other than the measured ones keep busy."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass

_IDLE = (3, 4)
"""Places of idle and iowait among the times of /proc/stat."""
_GUEST = 8
"""Place of guest time; it and later times are already part of others."""


@dataclass(frozen=True)
class Interval:
    """CPU time during some work of one rank.

    Attributes:
        host: Name of the rank's machine.
        wall_s: Seconds that the work took.
        own_s: CPU seconds of the rank's process.
        machine_s: CPU seconds of all processes of the machine; 0 if it does not tell.
    """

    host: str
    wall_s: float
    own_s: float
    machine_s: float


class Watch:
    """CPU times from this moment on."""

    def __init__(self) -> None:
        self._start = _times()

    def interval(self) -> Interval:
        """Return the times since the start."""
        wall_s, own_s, machine_s = (
            now - before for now, before in zip(_times(), self._start, strict=True)
        )
        return Interval(platform.node(), wall_s, own_s, machine_s)


def other_load(ranks: Sequence[Interval]) -> float:
    """Return how many cores processes other than these ranks kept busy on average, on the machine
    where they were most."""
    largest = 0.0
    for host in {rank.host for rank in ranks}:
        here = [rank for rank in ranks if rank.host == host]
        others_s = max(rank.machine_s for rank in here) - sum(rank.own_s for rank in here)
        largest = max(largest, others_s / max(rank.wall_s for rank in here))
    return largest


def _times() -> tuple[float, float, float]:
    """Seconds: a clock's, this process's on any core, and all processes' on any core."""
    with open("/proc/stat") as stat:
        times = [int(text) for text in stat.readline().split()[1:]][:_GUEST]
    busy = sum(times) - sum(times[place] for place in _IDLE)
    return time.perf_counter(), time.process_time(), busy / os.sysconf("SC_CLK_TCK")
