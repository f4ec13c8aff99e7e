"""No process of a pool outlives the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench import pool
from tests.support.paths import ROOT

ENDLESS = """
import sys, time
from bench.pool import pool
if __name__ == "__main__":
    with pool(sys.argv[1]) as processes:
        for _ in processes.map(len, ["a", "b", "c"]):
            pass
        print("started", flush=True)
        list(processes.map(time.sleep, [600, 600]))
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_pool_ends_with_its_parent(start: str, sent: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDLESS, start]
    temporary = os.environ | {"TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(command, cwd=ROOT, env=temporary, stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.send_signal(sent)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("may_fork", [False, True])
def test_workers_return_every_result_with_its_number(
    may_fork: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "may_fork", may_fork)
    with pool.workers() as executor, pool.waiting(executor, 2) as waiting:
        assert isinstance(executor, pool.Here) is isinstance(waiting, pool.Here) is not may_fork
        assert sorted(pool.as_done(executor, abs, [-3, 2, -1])) == [(0, 3), (1, 2), (2, 1)]
        with pytest.raises(ZeroDivisionError):
            waiting.submit(divmod, 1, 0).result()
