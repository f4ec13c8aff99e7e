"""A chart as data: panels of lines and bars on axes with units, for files and for the page alike.

Styles are matplotlib's keywords; bench/report/draw_matplotlib.py draws a chart with matplotlib, and
bench/report/draw_plotly.py with plotly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Style = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One direction of a panel.

    Attributes:
        label: What is along it, with its unit.
        ticks: Text by place; empty leaves places and numbers to who draws.
        log: Base of a logarithmic axis; 0 for a linear one.
        limits: Where it begins and ends; None leaves that to who draws.
        upright: Whether the ticks' text stands on end.
    """

    label: str = ""
    ticks: Mapping[float, str] = field(default_factory=dict)
    log: int = 0
    limits: tuple[float, float] | None = None
    upright: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points, joined unless their style has the line style "".

    Attributes:
        label: In the legend; marks with one label share an entry.
        x: Places; a NaN in `y` interrupts the line.
        text: How to write each y above its point, as a format; empty for not at all.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Rectangles that begin at `base` and are `size` long, standing or lying.

    Attributes:
        text: In each, if it is to have any.
        about: Of each, for who points at it.
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


Mark = Line | Bars


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Marks on one pair of axes.

    Attributes:
        headings: Text at the panel's upper edge, by place.
        width: Relative to the other panels'.
        height: Likewise.
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
        of: Which rows it shows, to tell it from others of the same figure.
        source: What the numbers are of and how they came about.
        columns: Panels side by side; 0 for all of them.
        share_y: Whether the panels of a line have one y axis.
    """

    panels: Sequence[Panel]
    of: str = ""
    source: str = ""
    columns: int = 0
    share_y: bool = True

    @property
    def legend(self) -> dict[str, Mark]:
        """A mark for each label, in the order of their first use."""
        found: dict[str, Mark] = {}
        for panel in self.panels:
            for mark in panel.marks:
                if mark.label:
                    found.setdefault(mark.label, mark)
        return found


def shortened(text: str, most: int) -> str:
    """Text of at most so many letters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
