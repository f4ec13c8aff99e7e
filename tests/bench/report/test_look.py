"""Figures for a paper: their files, widths and fonts."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.text import Text

from bench.__main__ import main
from bench.report import draw_matplotlib
from bench.report.look import PAPER
from tests.support.paths import RESULTS
from tests.support.reports import EXAMPLE, cards_of


def test_a_paper_has_vector_files_only(tmp_path: Path) -> None:
    ring = RESULTS / "ring.csv"
    command = ["report", "--rows", str(ring), "--out", str(tmp_path), "--style", "paper"]
    assert main(command) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".html", ".pdf", ".svg"}


@pytest.mark.parametrize(
    ("name", "path", "inches"),
    [
        ("balance", RESULTS / "ring.csv", 3.3),
        ("throughput", EXAMPLE, 6.9),
        ("ablation", RESULTS / "ablation.csv", 6.9),
    ],
)
def test_a_figure_is_as_wide_as_a_column_or_the_text(name: str, path: Path, inches: float) -> None:
    figure = draw_matplotlib.draw(cards_of(path)[name].charts[0], PAPER)
    assert figure.get_figwidth() == inches
    axes = figure.axes[0]
    texts = [*axes.get_yticklabels(), axes.yaxis.label, *figure.findobj(Text)]
    sizes = {text.get_fontsize() for text in texts if text.get_text()}
    assert 8 in sizes
    assert max(sizes) == 8
