"""Load of other processes while a cell is measured."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from bench.meters.load import Interval, Watch, other_load


def test_other_processes_are_what_the_ranks_did_not_use() -> None:
    """Two hosts of two ranks and one rank; on the second other processes use 1.5 cores."""
    first = [Interval("a", wall_s=10, own_s=own, machine_s=16) for own in (9, 6)]
    second = [Interval("b", wall_s=10, own_s=5, machine_s=20)]
    assert other_load(first) == pytest.approx(0.1)
    assert other_load([*first, *second]) == pytest.approx(1.5)
    assert other_load([Interval("a", wall_s=1, own_s=1, machine_s=0)]) == 0


def test_a_busy_process_is_seen_and_the_own_work_is_not() -> None:
    begun_s, watch = time.process_time(), Watch()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            pass
        busy_s = sum(psutil.Process(busy.pid).cpu_times()[:2])
        found = watch.interval()
        busy.kill()
    assert busy_s > 0
    assert found.own_s == pytest.approx(time.process_time() - begun_s, abs=0.05)
    assert found.machine_s > found.own_s + busy_s - 0.1
    assert other_load([found]) == pytest.approx((found.machine_s - found.own_s) / found.wall_s)
