"""Sizes and formats of figures: for a screen, or for the columns of a paper."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, kw_only=True)
class Look:
    """The sizes of a figure's text and panels.

    Attributes:
        formats: Endings of the files.
        font_pt: Size of titles, labels and ticks.
        legend_pt: Size of the legend.
        small_pt: Size of the source, the note and ticks that are turned.
        tiny_pt: Size of texts inside bars.
        panel_inches: Width and height of a panel of width and height 1.
        margin_inches: Width and height around all panels.
        turned_inches: Height added per letter of the longest tick that is turned.
        widths: Width in inches of a figure up to a total width of its panels in a row; empty for
            widths that follow from the panels.
    """

    formats: tuple[str, ...]
    font_pt: float
    legend_pt: float
    small_pt: float
    tiny_pt: float
    panel_inches: tuple[float, float]
    margin_inches: tuple[float, float]
    turned_inches: float = 0.0
    widths: tuple[tuple[float, float], ...] = ()

    def columns(self, asked: int, widest: float) -> int:
        """The number of panels side by side, at most that asked for.

        Args:
            widest: Width of the widest panel.
        """
        if not self.widths:
            return asked
        room = self.widths[-1][1] / (self.panel_inches[0] * widest)
        return max(1, min(asked, int(room)))

    def width(self, panels: float) -> float:
        """The width of a figure in inches.

        Args:
            panels: Total width of the panels in a row.
        """
        natural = self.margin_inches[0] + self.panel_inches[0] * panels
        return next((inches for most, inches in self.widths if panels <= most), natural)


SCREEN = Look(
    formats=("png", "svg", "pdf"),
    font_pt=9,
    legend_pt=8,
    small_pt=7,
    tiny_pt=6,
    panel_inches=(3.4, 2.7),
    margin_inches=(1.0, 0.9),
)
PAPER = Look(
    formats=("pdf", "svg"),
    font_pt=8,
    legend_pt=8,
    small_pt=7,
    tiny_pt=6,
    panel_inches=(1.9, 1.8),
    margin_inches=(0.6, 0.7),
    turned_inches=0.055,
    widths=((1.4, 3.3), (inf, 6.9)),
)
"""A column of 3.3 inches for one panel, the width of the text (6.9 inches) for several."""
LOOKS = {"screen": SCREEN, "paper": PAPER}
