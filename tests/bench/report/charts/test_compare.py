"""The figure of a comparison, on the page and as files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench.report import draw_matplotlib
from bench.report.chart import Line
from bench.report.charts import compare
from tests.support.paths import RESULTS
from tests.support.reports import cards_of, written

SHIPPED = RESULTS / "compare.csv"


def test_ratios_and_their_spread_are_the_rows() -> None:
    rows = pd.read_csv(SHIPPED)
    (chart,) = cards_of(SHIPPED)["compare"].charts
    assert "measured" in chart.source
    assert "10 pairs" in chart.source
    values = {
        "step time": rows["ratio_p50"],
        "bytes sent": rows["ours_comm_bytes"] / rows["peer_comm_bytes"],
        "peak memory": rows["ours_peak_bytes"] / rows["peer_peak_bytes"],
    }
    peers = [*dict.fromkeys(rows["peer"])]
    for panel, (quantity, ratios) in zip(chart.panels, values.items(), strict=True):
        assert panel.title == f"{quantity}, 2K tokens"
        assert [*panel.y.ticks.values()] == peers
        points = [mark for mark in panel.marks if isinstance(mark, Line) and mark.label]
        assert [mark.label for mark in points] == ["2 ranks, fp32", "2 ranks, bf16"]
        drawn = {
            (peers[round(y)], mark.label.split(", ")[1]): x
            for mark in points
            for x, y in zip(mark.x, mark.y, strict=True)
        }
        cells = zip(rows["peer"], rows["dtype"], strict=True)
        assert drawn == dict(zip(cells, ratios, strict=True))
        assert panel.x.limits is not None
        assert panel.x.limits[0] < min(1, *ratios)
        assert panel.x.limits[1] > max(1, *ratios)
    ends = {x for mark in chart.panels[0].marks if isinstance(mark, Line) for x in mark.x}
    assert {*rows["ratio_p20"], *rows["ratio_p80"]} <= ends


@pytest.mark.parametrize("name", ["compare", "compare_4_ranks", "compare_8k", "compare_blocks"])
def test_the_figure_fits_a_page(name: str) -> None:
    (chart,) = cards_of(RESULTS / f"{name}.csv")["compare"].charts
    figure = draw_matplotlib.draw(chart)
    assert figure.get_figheight() * 150 < 1600  # pixels of the PNG


@pytest.mark.parametrize(
    ("part", "tail"), [("blocks", ", blocks alone"), ("model", ""), (None, "")]
)
def test_a_panel_names_its_part(part: str | None, tail: str, tmp_path: Path) -> None:
    """Older files have no column for the part."""
    rows = pd.read_csv(SHIPPED, dtype=str).head(1).drop(columns="part", errors="ignore")
    rows = rows if part is None else rows.assign(part=part)
    (chart,) = cards_of(written(rows, tmp_path / "rows.csv"))["compare"].charts
    assert [panel.title for panel in chart.panels] == [
        f"{quantity}, 2K tokens{tail}" for quantity in ("step time", "bytes sent", "peak memory")
    ]


def test_rows_that_are_damaged_or_failed_are_left_out(tmp_path: Path) -> None:
    rows = pd.read_csv(SHIPPED, dtype=str)
    rows.loc[0, "status"] = "invalid"
    rows.loc[1, "ratio_p50"] = "x"
    rows.loc[2, "peer_comm_bytes"] = "0"
    (chart,) = cards_of(written(rows, tmp_path / "rows.csv"))["compare"].charts
    drawn = sum(len(m.x) for m in chart.panels[0].marks if isinstance(m, Line) and m.label)
    assert drawn == len(rows) - 3
    failed = written(rows.assign(status="error"), tmp_path / "failed.csv")
    assert cards_of(failed)["compare"].left_out == "no comparison that ended well"
    assert set(compare.NUMBERS) <= set(rows.columns)
