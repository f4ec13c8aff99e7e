"""The figure of a comparison, on the page and as files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench import compare_figure
from bench.chart import Bars, Line
from tests.test_report import RESULTS, cards_of, written

SHIPPED = RESULTS / "compare.csv"


def test_ratios_and_their_spread_are_the_rows() -> None:
    rows = pd.read_csv(SHIPPED)
    (chart,) = cards_of(SHIPPED)["compare"].charts
    assert [panel.title for panel in chart.panels] == [
        f"{ranks} ranks, 2K tokens, fp32" for ranks in sorted(rows["world_size"].unique())
    ]
    assert "measured" in chart.source
    assert "10 pairs" in chart.source
    for panel, (_, cells) in zip(chart.panels, rows.groupby("world_size"), strict=True):
        assert [*panel.y.ticks.values()] == [*cells["peer"]]
        time, sent, peak = (mark for mark in panel.marks if isinstance(mark, Bars))
        assert [*time.size] == [*cells["ratio_p50"]]
        assert [*sent.size] == [*cells["ours_comm_bytes"] / cells["peer_comm_bytes"]]
        assert [*peak.size] == [*cells["ours_peak_bytes"] / cells["peer_peak_bytes"]]
        assert time.text[0] == f"{cells['ratio_p50'].iloc[0]:.2f}"
        spread, same = (mark for mark in panel.marks if isinstance(mark, Line))
        assert [*spread.x[:2]] == [*cells.iloc[0][["ratio_p20", "ratio_p80"]]]
        assert {*same.x} == {1}
        assert panel.x.limits is not None
        assert panel.x.limits[1] > rows["ratio_p80"].max()


def test_rows_that_are_damaged_or_failed_are_left_out(tmp_path: Path) -> None:
    rows = pd.read_csv(SHIPPED, dtype=str)
    rows.loc[0, "status"] = "invalid"
    rows.loc[1, "ratio_p50"] = "x"
    rows.loc[2, "peer_comm_bytes"] = "0"
    (chart,) = cards_of(written(rows, tmp_path / "rows.csv"))["compare"].charts
    drawn = sum(len(panel.y.ticks) for panel in chart.panels)
    assert drawn == len(rows) - 3
    failed = written(rows.assign(status="error"), tmp_path / "failed.csv")
    assert cards_of(failed)["compare"].notes == ["left out: no comparison that ended well"]
    assert set(compare_figure.NUMBERS) <= set(rows.columns)
