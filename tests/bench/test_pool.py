"""No process of a pool outlives the process that started it."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

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
@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_pool_ends_with_its_parent(start: str, sent: signal.Signals) -> None:
    command = [sys.executable, "-c", ENDLESS, start]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.send_signal(sent)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
