"""Grids that are refused before their first cell starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.refusals import refused_line


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
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "rows.csv"
    assert reason in refused_line(capsys, "sweep", *flags.split(), "--out", str(out))
    assert not out.exists()
