"""The figure of the longest sequences: bars by layout and toggles, with the limit of each."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench.report import cell_sets, inputs
from bench.report.chart import Bars, Chart, Line
from bench.report.charts import longest
from tests.support.reports import shipped, written


def plan_rows(tmp_path: Path, **columns: str) -> pd.DataFrame:
    """Make rows like plan's: each method's longest, without and with a trick, on 2 and 4 GPUs."""
    base = shipped()
    base = base[(base["ring_parallel_size"] == "1") & (base["seq_len"] != "512")]
    base = base.assign(mode="dry_run", hardware="h100-80g", longest_limit="GPU")
    tricked = base["seq_len"] == "2048"
    base.loc[tricked, "activation_checkpointing"] = "True"
    base.loc[tricked & (base["method"] == "ulysses"), "longest_limit"] = "host"
    path = written(base.assign(**columns), tmp_path / "rows.csv")
    return inputs.drawable(inputs.read([path]))


def test_a_bar_for_each_method_and_set_of_toggles(tmp_path: Path) -> None:
    chart = longest.chart(plan_rows(tmp_path))
    assert isinstance(chart, Chart)
    assert [panel.title for panel in chart.panels] == ["2 GPUs", "4 GPUs"]
    assert "dry run" in chart.source
    for panel in chart.panels:
        assert [*panel.x.ticks.values()] == ["tp", "tp_sp", "ulysses", "odysseus"]
        bars = {mark.label: mark for mark in panel.marks if isinstance(mark, Bars)}
        assert {name: set(mark.size) for name, mark in bars.items()} == {
            "tiled loss": {1},
            "checkpointing, tiled loss": {2},
        }
        gpu, host = (mark for mark in panel.marks if isinstance(mark, Line))
        assert (gpu.label, host.label) == (
            "GPU memory is what limits",
            "host memory is what limits",
        )
        assert (len(gpu.x), len(host.x)) == (7, 1)
        at = {text: place for place, text in panel.x.ticks.items()}
        assert host.x[0] == at["ulysses"] + 0.5  # the second of its two bars
        assert (
            bars["checkpointing, tiled loss"]
            .about[2]
            .endswith("2K tokens, then host memory is short")
        )


def test_toggles_without_a_name_are_named_by_their_columns(tmp_path: Path) -> None:
    rows = plan_rows(tmp_path)
    rows.loc[rows.index[0], "overlap_chunks"] = "2"
    names = cell_sets.toggles(rows)
    assert names[0] == "tiled loss; overlap_chunks 2"
    assert set(names[1:]) == {"tiled loss", "checkpointing, tiled loss"}


def test_the_chart_names_how_many_sets_of_toggles_are_left_out(tmp_path: Path) -> None:
    rows = plan_rows(tmp_path)
    rows["overlap_chunks"] = [str(n) for n in range(2, len(rows) + 2)]
    chart = longest.chart(rows)
    assert isinstance(chart, Chart)
    assert chart.source.endswith(f", without {len(rows) - 5} more sets of toggles")


@pytest.mark.parametrize(("column", "value"), [("longest_limit", ""), ("status", "oom_gpu")])
def test_other_rows_are_not_in_it(tmp_path: Path, column: str, value: str) -> None:
    why = longest.chart(plan_rows(tmp_path, **{column: value}))
    assert why == "no row of plan --objective longest --out"
