"""Grids that are refused before their first cell starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import main
from bench.runner import processes
from tests.support.small_runs import nothing_starts


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--seq_len []", "seq_len = [] makes no cells"),
        ("--model.num_hidden_layers []", "model.num_hidden_layers = [] makes no cells"),
        ("--hardware [h100-80g,h900]", "hardware is 'h900'"),
        ("--hardware [h100-80g,h900] --dry_run true", "hardware is 'h900'"),
        ("--hardware [/nowhere.yml]", "/nowhere.yml"),
        ("--method [tp,pp]", "method = 'pp' is unknown"),
    ],
)
def test_one_bad_value_stops_the_sweep_at_its_start(
    flags: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(processes, "run_ranks", nothing_starts)
    out = tmp_path / "rows.csv"
    assert main(["sweep", *flags.split(), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert not out.exists()
