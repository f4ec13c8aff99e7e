"""Draw charts with matplotlib, all in one style, and save them as files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from io import BytesIO
from itertools import pairwise
from math import inf, log10
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis as MplAxis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.report.chart import Area, Axis, Bars, Chart, Line, Mark, Panel, shortened
from bench.report.look import SCREEN, Look
from odysseus.io import files

BESIDE = ("png", "svg")
"""Formats of the figure beside a CSV."""
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.4,
    "svg.hashsalt": "odysseus",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "figure.dpi": 150,
}


def styled(look: Look = SCREEN) -> AbstractContextManager[None]:
    """A context in which everything is drawn in the style of all figures."""
    style: dict[Any, Any] = _STYLE | {"font.size": look.font_pt}
    return mpl.rc_context(style)


def rendered(figure: Figure, formats: tuple[str, ...]) -> dict[str, bytes]:
    """The content of a figure's file in each format, by format."""
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    contents = {}
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)  # names in other scripts
        ConstrainedLayoutEngine().execute(figure)  # once, not again for each format
        for name in formats:
            content = BytesIO()
            figure.savefig(content, format=name, metadata=dates.get(name))
            contents[name] = content.getvalue()
    return contents


def save(figure: Figure, path: Path, formats: tuple[str, ...] = BESIDE) -> None:
    """Write a figure in each format, as `path` with the format's suffix, each file whole or not at
    all."""
    write(rendered(figure, formats), path)


def write(contents: Mapping[str, bytes], path: Path) -> None:
    """Write what :func:`rendered` returned."""
    for name, content in contents.items():
        files.write(Path(f"{path}.{name}"), content)


def check_beside(csv: Path) -> None:
    """Raise ValueError unless the figure of a CSV can be written beside it, over nothing but an
    earlier figure of the same CSV."""
    for name in BESIDE:
        figure = csv.with_suffix(f".{name}")
        if figure == csv:
            raise ValueError(f"out = {csv} is the name of its figure; valid: a name ending in .csv")
        if csv.exists() and figure.exists():
            continue
        files.check_output("out", figure, "a name whose PNG and SVG are new, too")


def draw(chart: Chart, look: Look = SCREEN) -> Figure:
    """The chart as a figure of matplotlib."""
    asked = min(chart.columns or len(chart.panels), len(chart.panels))
    columns = look.columns(asked, max(panel.width for panel in chart.panels))
    rows = -(-len(chart.panels) // columns)
    widths = [max(panel.width for panel in chart.panels[at::columns]) for at in range(columns)]
    heights = [panel.height for panel in chart.panels[::columns]]
    legend = [_handle(label, mark) for label, mark in chart.legend.items()]
    width = look.width(sum(widths))
    legend_columns = _legend_columns(list(chart.legend), width)
    lines = -(-len(legend) // max(1, legend_columns))
    below = [*_wrapped(plain(chart.source), int(15 * width)).split("\n"), *_note(chart, width)]
    inches = 0.2 * lines + 0.12 * len(below)
    inches += look.turned_inches * rows * _longest_turned(chart)
    height = look.margin_inches[1] + look.panel_inches[1] * sum(heights) + inches
    with styled(look):
        figure = Figure(figsize=(width, height))
        places = figure.subplots(
            rows,
            columns,
            squeeze=False,
            sharey="row" if chart.share_y else False,
            width_ratios=widths,
            height_ratios=heights,
        )
        for panel, axes in zip(chart.panels, places.flat, strict=False):
            _draw_panel(axes, panel, look)
        for row in places:
            for left, right in pairwise(row):
                if chart.share_y or left.get_ylabel() == right.get_ylabel():
                    right.set_ylabel("")
        for axes in places.flat[len(chart.panels) :]:
            axes.set_visible(False)
        if legend:
            figure.legend(
                handles=legend,
                loc="outside upper center",
                ncols=legend_columns,
                frameon=False,
                fontsize=look.legend_pt,
            )
        labels = {panel.x.label for panel in chart.panels}
        if len(labels) == 1 and len(chart.panels) > 1:
            for axes in places.flat:
                axes.set_xlabel("")
        common = labels.pop() if len(labels) == 1 and len(chart.panels) > 1 else ""
        figure.supxlabel("\n".join(filter(None, (plain(common), *below))), fontsize=look.small_pt)
        return figure


def _longest_turned(chart: Chart) -> int:
    """Letters of the longest tick that is turned."""
    ticks = (text for panel in chart.panels if panel.x.upright for text in panel.x.ticks.values())
    return min(40, max(map(len, ticks), default=0))


def _note(chart: Chart, inches: float) -> list[str]:
    """The lines of a chart's note."""
    return wrap(plain(chart.note, 600), int(17 * inches))


def plain(text: str, most: int = 300) -> str:
    """Text that matplotlib shows unchanged: no formulas or control characters, and not too long."""
    shown = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return shortened(shown, most).replace("$", r"\$")


def _wrapped(text: str, letters: int) -> str:
    """The text in lines of at most `letters` characters, broken after commas."""
    lines = [""]
    for part in text.split(", "):
        if lines[-1] and len(lines[-1]) + len(part) > letters:
            lines.append(part)
        else:
            lines[-1] += f", {part}" if lines[-1] else part
    return ",\n".join(lines)


def _legend_columns(labels: list[str], inches: float) -> int:
    """The number of legend entries side by side: all, or as many as the longest one allows."""
    widths = [0.55 + 0.065 * len(label) for label in labels]
    if sum(widths) < inches:
        return max(1, len(labels))
    return max(1, min(5, int(inches / max(widths))))


def _draw_panel(axes: Axes, panel: Panel, look: Look) -> None:
    for mark in panel.marks:
        if isinstance(mark, Area):
            style: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.0, **mark.style}
            axes.fill_between(mark.x, mark.low, mark.high, step="post", **style)
            continue
        if isinstance(mark, Line):
            axes.plot(mark.x, mark.y, **mark.style)
            if mark.spans:
                low, high = zip(*mark.spans, strict=True)
                axes.vlines(mark.x, low, high, colors=mark.style["color"], linewidth=0.8)
            for x, y in zip(mark.x, mark.y, strict=True) if mark.text else ():
                text = mark.text.format(y)
                axes.annotate(text, (x, y), (0, 6), textcoords="offset points", ha="center")
            continue
        bar = axes.barh if mark.lying else axes.bar
        style = {"edgecolor": "white", "linewidth": 0.3, **mark.style}
        bar(mark.at, mark.size, mark.thickness, mark.base, **style)
        for at, size, base, text in zip(mark.at, mark.size, mark.base, mark.text, strict=False):
            x, y = (base + size / 2, at) if mark.lying else (at, base + size / 2)
            lines = "\n".join(plain(line) for line in text.splitlines())
            ground = style["facecolor"]
            axes.text(
                *(x, y, lines),
                ha="center",
                va="center",
                fontsize=look.tiny_pt,
                color=_readable_on(ground),
                bbox={"facecolor": ground, "edgecolor": "none", "pad": 0.8},  # over hatches
            )
    for x, text in panel.headings.items():
        axes.annotate(
            plain(text), (x, 0.99), xycoords=("data", "axes fraction"), ha="center", va="top"
        )
    if panel.title:
        axes.set_title(plain(panel.title, 60), fontsize=look.font_pt)
    for name, axis in (("x", panel.x), ("y", panel.y)):
        _draw_axis(axes, name, axis)
    if panel.x.upright:
        axes.tick_params(axis="x", length=0, rotation=90, labelsize=look.small_pt)


def _readable_on(color: str) -> str:
    """Black or white, whichever has the higher contrast with the colour."""
    # Relative luminance and contrast: WCAG 2.1, https://www.w3.org/TR/WCAG21.
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


def log_ticks(drawn: MplAxis) -> None:
    """Set numeric ticks on a logarithmic axis, denser if it spans less. Call it after drawing."""
    low, high = sorted(drawn.get_view_interval())
    decades = log10(high / low)
    for most, multiples in ((1, (1, 1.5, 2, 3, 5, 7)), (3, (1, 2, 5)), (inf, (1,))):
        if decades < most:
            drawn.set_major_locator(LogLocator(10, subs=multiples))
            break
    drawn.set_minor_locator(NullLocator())
    drawn.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_axis(axes: Axes, name: str, axis: Axis) -> None:
    drawn: MplAxis = axes.xaxis if name == "x" else axes.yaxis
    axes.set(**{f"{name}label": "\n".join(map(plain, axis.label.split("\n")))})
    if axis.log:
        axes.set(**{f"{name}scale": "log"})
    if axis.limits is not None:
        axes.set(**{f"{name}lim": axis.limits})
    if axis.log:
        log_ticks(drawn)
    if axis.ticks:
        drawn.set_major_locator(FixedLocator(list(axis.ticks)))
        texts = {at: plain(text, 40) for at, text in axis.ticks.items()}
        drawn.set_major_formatter(FuncFormatter(lambda value, _: texts.get(value, "")))


def _handle(label: str, mark: Mark) -> Any:
    """The legend entry of a mark."""
    if isinstance(mark, Bars | Area):
        style: dict[str, Any] = {"edgecolor": "white", **mark.style}
        return Patch(label=plain(label, 60), **style)
    return Line2D([], [], label=plain(label, 60), **mark.style)
