"""Two sweeps on one file of rows, of which one is killed: each cell is measured once."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest

from bench import rows
from tests.support.launched import SMALL, bench, finished

SEEDS = [str(seed) for seed in range(24)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dry_run", "measured"])
@pytest.mark.parametrize("trial", [1, 2, 3])
def test_the_other_takes_over(mode: str, trial: int, tmp_path: Path) -> None:
    out, random = tmp_path / "rows.csv", Random(trial)
    dry = str(mode == "dry_run").lower()
    flags = f"sweep {SMALL} --seq_len 64 --steps 1 --dry_run {dry} --seed [{','.join(SEEDS)}]"
    killed, other = (bench(*flags.split(), "--out", str(out)) for _ in range(2))
    deadline = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 3))
    killed.kill()
    status, said, err = finished(other)
    killed.communicate()
    assert (status, err) == (0, ""), said
    assert sorted(rows.read(out)["seed"], key=int) == SEEDS
    assert set(rows.read(out)["status"]) == {"ok"}
