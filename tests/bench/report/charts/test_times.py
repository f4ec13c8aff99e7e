"""Figures of time: whiskers, noisy rows, and CPUs whose ranks share cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.commands.report import table
from bench.report import inputs, page
from bench.report.chart import Chart, Line
from tests.support.reports import EXAMPLE, cards_of, on_gpus, shipped, written

ROUNDS = {"rounds": "3", "round_ms_low": "100", "round_ms_high": "400"}


def chart_of(figure: str, rows: pd.DataFrame, tmp_path: Path) -> Chart:
    (chart,) = cards_of(written(rows, tmp_path / "rows.csv"))[figure].charts
    return chart


def lines(chart: Chart) -> list[Line]:
    return [mark for panel in chart.panels for mark in panel.marks if isinstance(mark, Line)]


@pytest.mark.parametrize("figure", ["throughput", "mfu", "strong_scaling", "weak_scaling"])
def test_whiskers_span_the_rounds_else_the_steps(figure: str, tmp_path: Path) -> None:
    steps = chart_of(figure, on_gpus(), tmp_path)
    assert steps.note == "Whiskers: 20 % to 80 % of the steps."
    rounds = chart_of(figure, on_gpus().assign(**ROUNDS), tmp_path)
    assert rounds.note == "Whiskers: fastest to slowest round."
    for line in lines(rounds):
        for low, high in line.spans:
            assert high / low == pytest.approx(4)
    assert any(line.spans for line in lines(rounds))


def test_a_predicted_time_without_an_interval_has_no_whisker(tmp_path: Path) -> None:
    none = dict.fromkeys(("step_ms_p20", "step_ms_p80"), "")
    dry = on_gpus().assign(mode="dry_run", hardware="h100-80g", **none)
    assert chart_of("throughput", dry, tmp_path).note == ""
    interval = dry.assign(step_ms_low="1", step_ms_high="2")
    found = chart_of("throughput", interval, tmp_path)
    assert found.note == "Whiskers: interval of the prediction."


def test_noisy_rows_are_marked(tmp_path: Path) -> None:
    rows = shipped()
    rows["noisy"] = ["True", *["False"] * 46, ""]
    (mark,) = [
        line
        for line in lines(chart_of("throughput", rows, tmp_path))
        if line.label.startswith("noisy")
    ]
    assert [*mark.y] == [float(rows["tokens_per_s"][0])]
    given = inputs.read([tmp_path / "rows.csv"])
    assert page.table(given)["noisy"] == [0]
    printed = table(inputs.drawable(given))
    assert printed.count("~") == 2  # the row and the line that explains it
    assert f"{float(rows['step_ms_p50'][0]):.0f}~" in printed
    assert "~" not in table(inputs.drawable(inputs.read([EXAMPLE])))


@pytest.mark.parametrize("figure", ["strong_scaling", "weak_scaling"])
@pytest.mark.parametrize(
    ("change", "drawn"),
    [
        ({}, False),  # 2 cores and up to 4 ranks
        ({"hardware": "a CPU (4 cores)"}, True),
        ({"hardware": "a CPU"}, True),
        ({"mode": "dry_run", "hardware": "cluster.yml"}, True),
        ({"device": "cuda", "hardware": "a GPU"}, True),
    ],
)
def test_ranks_that_share_cores_do_not_scale(
    figure: str, change: dict[str, Any], drawn: bool, tmp_path: Path
) -> None:
    card = cards_of(written(shipped().assign(**change), tmp_path / "rows.csv"))[figure]
    assert bool(card.charts) == drawn
    assert (card.left_out == "the ranks share the cores of a CPU") != drawn


def test_cpus_have_no_mfu_and_gloo_has_a_note() -> None:
    found = cards_of(EXAMPLE)
    assert found["mfu"].left_out == "no data sheet has a CPU's peak FLOP/s"
    (chart,) = found["throughput"].charts
    assert "gloo sends a reduce-scatter as an all-reduce" in chart.note
    assert "MFU" not in table(inputs.drawable(inputs.read([EXAMPLE])))
