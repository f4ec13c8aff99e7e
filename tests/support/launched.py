"""Commands in their own processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench import rows
from tests.support.paths import ROOT

SMALL = "--model.num_hidden_layers 1 --model.hidden_size 64 --model.intermediate_size 64"


def bench(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def one_row(path: Path) -> dict[str, str]:
    (row,) = rows.read(path).to_dict("records")
    return {str(column): value for column, value in row.items()}


def wait_for_handlers(process: subprocess.Popen[str]) -> None:
    """Wait until a process catches SIGTERM, which Python itself does not (proc(5))."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        mask = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        if int(mask.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)
    raise AssertionError(process.communicate())
