"""A chart as data: panels of lines, bars and areas on axes with units.

Styles are matplotlib's keywords. bench/report/draw_matplotlib.py draws a chart for files, and
bench/report/draw_plotly.py for the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Style = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The x or y axis of a panel.

    Attributes:
        label: Quantity and unit.
        ticks: Text by position; if empty, the drawing library chooses ticks.
        log: Base of a logarithmic axis; 0 for a linear one.
        limits: First and last value; if None, the drawing library chooses them.
        upright: Whether the text of the ticks is turned by 90 degrees.
    """

    label: str = ""
    ticks: Mapping[float, str] = field(default_factory=dict)
    log: int = 0
    limits: tuple[float, float] | None = None
    upright: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points, connected unless the line style is "".

    Attributes:
        label: Entry in the legend; marks with the same label share it.
        x: Positions of the points.
        y: Values of the points; NaN interrupts the line.
        spans: Least and greatest value of each point, drawn as whiskers; none for no whiskers.
        text: Format of the value written above each point; empty for no text.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style
    spans: Sequence[tuple[float, float]] = ()
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Vertical or horizontal bars from `base` to `base + size`.

    Attributes:
        label: Entry in the legend.
        at: Positions of the bars along the other axis.
        lying: Whether the bars are horizontal.
        text: Text inside each bar; empty for none.
        about: Text that the page shows when the pointer is over a bar.
    """

    label: str
    at: Sequence[float]
    size: Sequence[float]
    base: Sequence[float]
    style: Style
    thickness: float = 0.8
    lying: bool = False
    text: Sequence[str] = ()
    about: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Area:
    """The area between two lines of steps.

    Attributes:
        label: Entry in the legend.
        x: Positions, rising; each value holds until the next position.
        low: Lower end at each position.
        high: Upper end at each position.
    """

    label: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    style: Style


Mark = Line | Bars | Area


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Marks on one pair of axes.

    Attributes:
        headings: Text at the panel's upper edge, by x position.
        width: Width relative to that of other panels.
        height: Height relative to that of other panels.
    """

    title: str = ""
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    headings: Mapping[float, str] = field(default_factory=dict)
    width: float = 1.0
    height: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Panels with one legend.

    Attributes:
        of: The rows that it shows, to distinguish it from other charts of the same figure.
        origin: How the numbers came to be: measured, predicted, both, or empty where the title of
            the figure says it.
        source: The rows' model, dtype, mode (measured or dry run) and hardware.
        note: What a reader must know besides: the meaning of whiskers, rows that are not drawn.
        columns: Number of panels side by side; 0 for all of them.
        share_y: Whether panels side by side share one y axis.
    """

    panels: Sequence[Panel]
    of: str = ""
    origin: str = ""
    source: str = ""
    note: str = ""
    columns: int = 0
    share_y: bool = True

    @property
    def legend(self) -> dict[str, Mark]:
        """The first mark of each label, in the order of first use."""
        marks: dict[str, Mark] = {}
        for panel in self.panels:
            for mark in panel.marks:
                if mark.label:
                    marks.setdefault(mark.label, mark)
        return marks


def shortened(text: str, most: int) -> str:
    """The text, cut to at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
