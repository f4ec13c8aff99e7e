"""SIGINT and SIGTERM end a command with status 128 + their number, whatever it is doing."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from bench import rows
from tests.support.launched import SMALL, bench, finished, wait_for_handlers
from tests.support.marks import slow

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
