"""Charts as files: legible ticks, labels and texts."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bench.report import draw_matplotlib
from bench.report.chart import Axis, Bars, Chart, Line, Mark, Panel


def axes_of(mark: Mark, x: Axis | None = None, y: Axis | None = None) -> Any:
    panel = Panel(x=x or Axis(), y=y or Axis(), marks=[mark])
    return draw_matplotlib.draw(Chart(panels=[panel])).axes[0]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((1040, 3930), ["1500", "2000", "3000"]),
        ((900, 22_000), ["1000", "2000", "5000", "10000", "20000"]),
        ((3e-10, 2e-5), ["1e-09", "1e-08", "1e-07", "1e-06", "1e-05"]),
    ],
)
def test_a_logarithmic_axis_has_ticks_by_what_it_spans(
    ends: tuple[float, float], expected: list[str]
) -> None:
    line = Line(label="", x=[0, 1], y=ends, style={"color": "black"})
    axes = axes_of(line, y=Axis(log=10, limits=ends))
    low, high = ends
    shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert [axes.yaxis.get_major_formatter()(tick) for tick in shown] == expected


def test_a_label_keeps_its_lines_and_is_no_formula() -> None:
    line = Line(label="", x=[0], y=[0], style={"color": "black"})
    assert axes_of(line, y=Axis(label="a\n$b$")).get_ylabel() == "a\n\\$b\\$"


@pytest.mark.parametrize(
    ("fill", "ink"), [("#0072B2", "white"), ("#E69F00", "black"), ("#009E73", "black")]
)
def test_text_in_a_bar_has_the_bars_colour_behind_it(fill: str, ink: str) -> None:
    bar = Bars(label="", at=[0], size=[1], base=[0], style={"facecolor": fill}, text=["1"])
    (text,) = axes_of(bar).texts
    assert text.get_color() == ink
    assert to_hex(text.get_bbox_patch().get_facecolor()) == fill.lower()


@pytest.mark.parametrize(("letters", "columns"), [(4, 7), (18, 3)])
def test_a_legend_takes_one_line_where_it_fits(letters: int, columns: int) -> None:
    lines = [
        Line(label=f"{n}".ljust(letters, "x"), x=[0], y=[0], style={"color": "black"})
        for n in range(7)
    ]
    panel = Panel(x=Axis(), y=Axis(), marks=lines, width=1.5)
    drawn: Figure = draw_matplotlib.draw(Chart(panels=[panel]))
    assert drawn.legends[0]._ncols == columns
