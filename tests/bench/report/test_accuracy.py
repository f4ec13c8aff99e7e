"""Predictions compared with measured times."""

from __future__ import annotations

import pandas as pd
import pytest

from bench.report import accuracy, draw_matplotlib
from bench.report.charts import prediction


def rows(*times_ms: float) -> pd.DataFrame:
    """Make rows of tp, tp_sp and ulysses on four ranks at one length."""
    cells = zip(("tp", "tp_sp", "ulysses"), times_ms, strict=True)
    same = {
        "world_size": 4,
        "seq_len": 1024,
        "sequence_parallel_size": 4,
        "ring_parallel_size": 1,
    }
    return pd.DataFrame([same | {"method": m, "step_ms_p50": t} for m, t in cells])


def in_rounds(*rounds: tuple[tuple[float, ...], tuple[float, ...]]) -> pd.DataFrame:
    """Make rows of several rounds, from the measured and predicted times of each round."""
    both = enumerate(rounds)
    cells = [accuracy.matched(rows(*m), rows(*p), "here").assign(round=i) for i, (m, p) in both]
    return pd.concat(cells, ignore_index=True)


def test_errors() -> None:
    found = accuracy.matched(rows(100, 200, 105), rows(110, 180, 100), "here")
    assert dict(zip(found["method"], found["error"].round(3), strict=True)) == {
        "tp": 0.1,
        "tp_sp": -0.1,
        "ulysses": -0.048,
    }


def test_the_order_of_clearly_different_times() -> None:
    predicted = 110, 180, 100
    near = in_rounds(((100, 200, 105), predicted))
    assert accuracy.misordered(near) == []  # tp and ulysses differ by 5 % only
    far = in_rounds(((100, 200, 130), predicted))
    assert accuracy.misordered(far) == ["here, 1024 tokens: tp before ulysses"]


def test_the_order_is_that_within_rounds() -> None:
    """One layout takes 1.2 times as long as another in two rounds of three, one of them on a
    machine half as fast. The medians of times, 200 and 190, differ by 5 % only."""
    slow, fast = (240, 999, 200), (120, 999, 100)
    close = 200, 999, 190
    right = (12, 99, 10)
    assert accuracy.misordered(in_rounds((slow, right), (fast, right), (close, right))) == []
    wrong = in_rounds((slow, (9, 99, 10)), (fast, (9, 99, 10)), (close, right))
    assert accuracy.misordered(wrong) == ["here, 1024 tokens: ulysses before tp"]


def test_the_order_of_layouts_that_a_round_lacks() -> None:
    wrong = in_rounds(*[((100, 200, 130), (110, 180, 100))] * 3)
    lacks = wrong.drop(wrong[(wrong["method"] == "tp") & (wrong["round"] == 1)].index)
    assert accuracy.misordered(lacks) == ["here, 1024 tokens: tp before ulysses"]


def test_cells_of_one_file_only() -> None:
    with pytest.raises(ValueError, match=r"cells of here .*ulysses"):
        accuracy.matched(rows(1, 2, 3), rows(1, 2, 3).iloc[:2], "here")


def test_the_medians_of_rounds() -> None:
    """A round at a third of the speed has the same error."""
    rounds = [
        ((t, 200.0, 105.0), (p, 180.0, 100.0)) for t, p in ((100, 110), (300, 330), (101, 90))
    ]
    tp = accuracy.medians(in_rounds(*rounds)).set_index("method").loc["tp"]
    assert (tp["measured_ms"], tp["predicted_ms"], tp["rounds"]) == (101, 110, 3)
    assert (tp["error"], tp["error_max"]) == (pytest.approx(0.1), pytest.approx(0.1))
    assert tp["error_min"] == pytest.approx(90 / 101 - 1)


def test_the_cost_of_no_prefetch() -> None:
    on, off = rows(100, 200, 50), rows(110, 200, 60).assign(zero_prefetch=False)
    found = accuracy.off_over_on(pd.concat([on, off]))
    assert found.loc["tp", 1024] == pytest.approx(1.1)
    assert found.loc["ulysses", 1024] == pytest.approx(1.2)


def test_cells_are_matched_by_their_whole_identity() -> None:
    """Match two cells that differ in one trick, with some columns empty."""

    def twice(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([one.assign(compile=False), other.assign(compile=True)]).assign(
            reduce_bucket_size=None
        )

    measured = twice(rows(100, 200, 300), rows(10, 20, 30))
    predicted = twice(rows(110, 200, 300), rows(12, 20, 30))
    found = accuracy.matched(measured, predicted, "here")
    assert sorted(found[found["method"] == "tp"]["error"].round(3)) == [0.1, 0.2]


def test_figures_have_every_cell() -> None:
    found = accuracy.matched(rows(100, 200, 105), rows(110, 180, 100), "here")
    for axes in draw_matplotlib.draw(prediction.scatter(found)).axes:
        assert len([line for line in axes.lines if line.get_marker() != "None"]) == 3
    (panel,) = draw_matplotlib.draw(prediction.over_lengths(found)).axes
    assert "(tokens)" in panel.get_xlabel()
    assert "(ms)" in panel.get_ylabel()


def test_where_the_faster_method_changes() -> None:
    """tp's time is proportional to the length, ulysses's is constant: they meet at 2000 tokens."""
    rows = [
        {"seq_len": length, "method": method, "ring_parallel_size": 1}
        | {"measured_ms": time, "predicted_ms": time}
        for length in (1000, 4000)
        for method, time in (("tp", length), ("ulysses", 2000))
    ]
    (found,) = accuracy.crossings(pd.DataFrame(rows), lambda one, other: 7).to_dict("records")
    assert found == {
        "methods": "tp, ulysses",
        "measured": pytest.approx(2000),
        "predicted": pytest.approx(2000),
        "bytes": 7,
    }
