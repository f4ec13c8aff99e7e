"""The figure of predictions: the error of each cell, by the links of its cluster."""

from __future__ import annotations

import pandas as pd
import pytest

from bench.report.charts import prediction
from tests.support.paths import RESULTS


def test_errors_are_drawn_by_the_speed_of_the_links() -> None:
    times = pd.read_csv(RESULTS / "emulated" / "errors.csv")
    chart = prediction.scatter(times)
    panel = chart.panels[1]
    links = ["50 Mbit/s", "200 Mbit/s", "800 Mbit/s", "not throttled"]
    assert [*panel.x.ticks.values()] == links
    points = [mark for mark in panel.marks if mark.label and mark.label != "as measured"]
    drawn = sorted(y for mark in points for y in mark.y)
    error = 100 * (times["predicted_ms"] / times["measured_ms"] - 1)
    assert drawn == pytest.approx(sorted(error))
    assert f"median {error.abs().median():.1f} %" in chart.note
    assert f"largest {error.abs().max():.1f} %" in chart.note
    assert {mark.y[0] for mark in panel.marks if mark.label == ""} == {-10, 10}
