"""Predictions held against measured times."""

from __future__ import annotations

import pandas as pd
import pytest

from bench import figures, prediction


def rows(*times_ms: float) -> pd.DataFrame:
    """tp, tp_sp and ulysses on four ranks at one length."""
    cells = zip(("tp", "tp_sp", "ulysses"), times_ms, strict=True)
    same = {
        "world_size": 4,
        "seq_len": 1024,
        "sequence_parallel_size": 4,
        "ring_parallel_size": 1,
    }
    return pd.DataFrame([same | {"method": m, "step_ms_p50": t} for m, t in cells])


def test_errors_and_the_order() -> None:
    found = prediction.matched(rows(100, 200, 105), rows(110, 180, 100), "here")
    assert dict(zip(found["method"], found["error"].round(3), strict=True)) == {
        "tp": 0.1,
        "tp_sp": -0.1,
        "ulysses": -0.048,
    }
    assert prediction.misordered(found) == []  # tp and ulysses differ by 5 % only
    wrong = prediction.matched(rows(100, 200, 130), rows(110, 180, 100), "here")
    assert prediction.misordered(wrong) == ["here, 1024 tokens: tp before ulysses"]


def test_cells_of_one_file_only() -> None:
    with pytest.raises(ValueError, match="cells of here"):
        prediction.matched(rows(1, 2, 3), rows(1, 2, 3).iloc[:2], "here")


def test_figures_have_every_cell() -> None:
    found = prediction.matched(rows(100, 200, 105), rows(110, 180, 100), "here")
    with figures.styled():
        (axes,) = prediction.scatter(found).axes
        assert len([line for line in axes.lines if line.get_marker() != "None"]) == 3
        (panel,) = prediction.over_lengths(found).axes
    assert panel.get_xlabel() == "tokens"
    assert "(ms)" in panel.get_ylabel()


def test_where_methods_change_places() -> None:
    """tp's time goes with the length, ulysses's does not: they meet at 2000 tokens."""
    rows = [
        {"seq_len": length, "method": method, "ring_parallel_size": 1}
        | {"measured_ms": time, "predicted_ms": time}
        for length in (1000, 4000)
        for method, time in (("tp", length), ("ulysses", 2000))
    ]
    (found,) = prediction.crossings(pd.DataFrame(rows), lambda one, other: 7).to_dict("records")
    assert found == {
        "methods": "tp, ulysses",
        "measured": pytest.approx(2000),
        "predicted": pytest.approx(2000),
        "bytes": 7,
    }
