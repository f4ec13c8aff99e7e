"""The scripts that make tables and figures from a study's rows."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from scripts.studies import emulated_errors, growth, overlap_summary
from tests.support.paths import ROOT

STUDY = ROOT / "results" / "emulated"
ROW = {"status": "ok", "hardware": "a CPU", "git_commit": "0123456789", "world_size": 2}


def test_a_step_is_held_against_the_longer_of_compute_and_link(tmp_path: Path) -> None:
    """Compute takes 1 s; links add 1.2 s at 400 Mbit/s and 2 s at 200."""

    def write(name: str, steps_ms: dict[tuple[str, int | str], float]) -> None:
        rows = [
            {**ROW, "method": "tp", "zero_engine": engine, "overlap_chunks": chunks}
            | {"step_ms_p50": ms, "comm_bytes_total": 50_000_000}
            for (engine, chunks), ms in steps_ms.items()
        ]
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)

    write("none", {("", ""): 1000, ("overlap", 2): 900})
    write("400mbit", {("", ""): 2200, ("overlap", ""): 1800, ("", 2): 1500, ("overlap", 2): 1200})
    write("200mbit", {("", ""): 3000, ("overlap", 2): 2300})
    table = overlap_summary.summary(tmp_path)
    assert list(table["sent_s"].round(6).unique()) == [1, 2]
    found = table.set_index(["link", "way"])["ratio"]
    assert found["400mbit", "nothing hidden"] == pytest.approx(2.2 / 1.2)
    assert found["400mbit", "zero_engine overlap"] == pytest.approx(1.5)
    assert found["400mbit", "overlap_chunks 2"] == pytest.approx(1.25)
    assert found["400mbit", "both"] == pytest.approx(1)
    assert found["200mbit", "nothing hidden"] == pytest.approx(1.5)
    assert found["200mbit", "both"] == pytest.approx(1.15)
    drawn = overlap_summary.figure(table)
    assert [axes.get_title() for axes in drawn.axes] == [
        "links of 400 Mbit/s",
        "links of 200 Mbit/s",
    ]


def test_exponents_of_power_laws(tmp_path: Path) -> None:
    """Time grows as the square of the length and as the number of blocks; bytes grow as the
    length."""
    rows = [
        {**ROW, "method": "tp", "model": f"tiny({of}, num_hidden_layers={layers})"}
        | {"seq_len": tokens}
        | {"step_ms_p50": tokens**2 * layers, "model_tflops_per_gpu": 1.0}
        | {"comm_bytes_total": tokens, "peak_memory_bytes": 7 * layers * tokens}
        for of, tokens, layers in (
            *[("hidden_size=128", tokens, 2) for tokens in (1024, 2048, 4096)],
            *[("hidden_size=256", 1024, layers) for layers in (2, 4, 8)],
        )
    ]
    path = tmp_path / "rows.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    parts = growth.read(path)
    by_length, by_depth = (growth.exponents(parts[over], over).loc["tp"] for over in parts)
    assert by_length["step_ms_p50"] == pytest.approx(2)
    assert by_length["flops, last"] == pytest.approx(2)
    assert by_length["comm_bytes_total"] == pytest.approx(1)
    assert by_depth["step_ms_p50, last"] == pytest.approx(1)
    assert by_depth["comm_bytes_total"] == pytest.approx(0, abs=1e-9)
    assert len(growth.figure(parts).axes) == 6


def test_a_study_that_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a round there is one line of error. With a round at one speed there are errors, and
    no prefetch."""
    monkeypatch.setattr(sys, "argv", ["emulated_errors", str(tmp_path)])
    assert emulated_errors.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "without a finished round" in line
    shutil.copytree(STUDY / "800mbit-1", tmp_path / "800mbit-1")
    assert emulated_errors.main() == 0
    assert "prefetch" not in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "errors.csv")) == 15
    assert {path.suffix for path in tmp_path.glob("scatter.*")} == {".png", ".svg"}
