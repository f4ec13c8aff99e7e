"""SIGINT and SIGTERM end a command with status 128 + their number, whatever it is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import rows
from tests.support.launched import SMALL, bench, finished, wait_for_handlers
from tests.support.marks import slow

LATE = """
import sys
from bench.__main__ import console

class Late:
    def __del__(self):
        print("late", file=sys.__stdout__, flush=True)

late = Late()
sys.exit(console())
"""
"""A script whose object Python removes after all signals have got their handlers back."""
SWEEP = f"sweep {SMALL} --dry_run true --hardware h100-80g --dtype bf16 --seq_len 64"


@pytest.mark.parametrize("delay_s", [0, slow(0.3), 2])
@pytest.mark.parametrize("number", [signal.SIGINT, slow(signal.SIGTERM)])
def test_while_it_imports(tmp_path: Path, number: signal.Signals, delay_s: float) -> None:
    process = bench(*SWEEP.split(), "--out", str(tmp_path / "rows.csv"))
    wait_for_handlers(process)
    time.sleep(delay_s)
    process.send_signal(number)
    assert finished(process, 10) == (128 + number, "", "")


@pytest.mark.parametrize("number", [slow(signal.SIGINT), signal.SIGTERM])
def test_while_it_counts_a_dry_run(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "rows.csv"
    seeds = ",".join(map(str, range(500)))
    process = bench(*SWEEP.split(), "--seed", f"[{seeds}]", "--out", str(out))
    deadline = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    status, _, err = finished(process, 10)
    assert status == 128 + number
    assert "Traceback" not in err
    assert set(rows.read(out)["status"]) == {"ok"}


@pytest.mark.parametrize(
    ("arguments", "status"), [(["hardware"], 0), (["run", "--help"], 0), (["hardwear"], 2)]
)
def test_none_is_lost_while_python_shuts_down(arguments: list[str], status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert "late" not in done.stdout
