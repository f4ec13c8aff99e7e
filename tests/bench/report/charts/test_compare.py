"""The figure of a comparison, on the page and as files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench.report import draw_plotly
from bench.report.chart import Bars, Line
from bench.report.charts import compare
from tests.support.paths import RESULTS
from tests.support.reports import cards_of, written

SHIPPED = RESULTS / "compare.csv"


def test_ratios_and_their_spread_are_the_rows() -> None:
    rows = pd.read_csv(SHIPPED)
    (chart,) = cards_of(SHIPPED)["compare"].charts
    assert "measured" in chart.source
    assert "10 pairs" in chart.source
    settings = rows.groupby(["part", "world_size", "seq_len", "dtype"], sort=False)
    for panel, ((part, ranks, tokens, dtype), cells) in zip(chart.panels, settings, strict=True):
        alone = ", blocks alone" if part == "blocks" else ""
        assert panel.title == f"{ranks} ranks, {tokens // 1024}K tokens, {dtype}{alone}"
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


@pytest.mark.parametrize(
    ("part", "tail"), [("blocks", ", blocks alone"), ("model", ""), (None, "")]
)
def test_a_panel_names_its_part(part: str | None, tail: str, tmp_path: Path) -> None:
    """Older files have no column for the part."""
    rows = pd.read_csv(SHIPPED, dtype=str).head(1).drop(columns="part", errors="ignore")
    rows = rows if part is None else rows.assign(part=part)
    (chart,) = cards_of(written(rows, tmp_path / "rows.csv"))["compare"].charts
    (panel,) = chart.panels
    assert panel.title.endswith(rows["dtype"].iloc[0] + tail)


def test_on_the_page_no_ratio_stands_on_hatches() -> None:
    (chart,) = cards_of(SHIPPED)["compare"].charts
    bars = [trace for trace in draw_plotly.drawn(chart)["panels"][0]["data"] if "base" in trace]
    places = {bool(bar["marker"]["pattern"]["shape"]): bar["textposition"] for bar in bars}
    assert places == {True: "outside", False: "inside"}


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
    assert set(compare.NUMBERS) <= set(rows.columns)
