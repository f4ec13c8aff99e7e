"""The script for the first GPU: its commands, rehearsed on a CPU, and its table."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from bench import rows
from scripts.studies import first_gpu
from tests.support.paths import ROOT


def test_a_cell_beside_its_dry_run_and_without_offload() -> None:
    def cells(step_ms: list[float], peaks: list[int], status: str = "ok") -> pd.DataFrame:
        table = {"step_ms_p50": step_ms, "peak_memory_bytes": peaks}
        cell = {"method": "ulysses", "seq_len": 8192, "status": ["ok", status]}
        return pd.DataFrame(
            {**cell, **table, "activation_checkpoint_cpu_offload": ["False", "True"]}
        )

    measured, predicted = cells([100, 110], [50, 20]), cells([90, 99], [49, 19])
    found = first_gpu.beside(measured, predicted)
    assert [*found["step_ms_ratio"]] == pytest.approx([0.9, 0.9])
    assert [*found["peak_bytes_ratio"]] == pytest.approx([0.98, 0.95])
    assert [*found["over_without_offload"]] == pytest.approx([1, 1.1])
    assert len(first_gpu.beside(cells([100, 110], [50, 20], "oom_gpu"), predicted)) == 1


@pytest.mark.slow
def test_every_part_on_a_cpu(tmp_path: Path) -> None:
    """The tests of a GPU are skipped; cells are small."""
    command = ["bash", "scripts/first_gpu.sh", str(tmp_path / "out"), "rehearse"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    out = tmp_path / "out"
    for name in ("rows.csv", "dry_runs.csv"):
        assert {*rows.read(out / name)["status"]} == {"ok"}
    beside = (out / "beside.txt").read_text()
    assert "peak_bytes_ratio" in beside
    assert (out / "report" / "report.html").exists()
    assert (out / "profile.yml").exists()
