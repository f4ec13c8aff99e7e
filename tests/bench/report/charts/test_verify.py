"""The figure of a correctness experiment: zero differences, and the tolerance."""

from __future__ import annotations

import pandas as pd
import pytest

from bench.report.charts import verify
from tests.support.paths import RESULTS


def steps() -> pd.DataFrame:
    return pd.read_csv(RESULTS / "verify" / "tp.csv")


def test_zero_is_drawn_below_the_lowest_power_of_ten() -> None:
    rows = steps()
    assert (rows["loss_difference"] == 0).any()
    panel = verify.overlay(rows, "").panels[2]
    difference = panel.marks[0]
    zero = next(at for at, text in panel.y.ticks.items() if text == "0")
    assert panel.y.limits is not None
    assert panel.y.limits[0] < zero < rows["loss_difference"][rows["loss_difference"] > 0].min()
    pairs = zip(rows["loss_difference"], difference.y, strict=True)
    assert all(y == (value or zero) for value, y in pairs)


def test_differences_that_are_all_zero_are_drawn() -> None:
    rows = steps().assign(loss_difference=0.0)
    panel = verify.overlay(rows, "").panels[2]
    (zero,) = set(panel.marks[0].y)
    assert panel.y.ticks[zero] == "0"


@pytest.mark.parametrize("column", [True, False])
def test_the_tolerance_is_a_line(column: bool) -> None:
    rows = steps().assign(tolerance=1e-4) if column else steps()
    panels = verify.overlay(rows, "", None if column else 1e-4).panels[2:]
    for panel in panels:
        _, line = panel.marks
        assert (line.label, {*line.y}) == ("tolerance", {1e-4})
    assert all(len(panel.marks) == 1 for panel in verify.overlay(steps(), "").panels[2:])
