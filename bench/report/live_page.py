"""The page of a running sweep.

It is written again after each row, between cells, so that drawing takes no time from measurements.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.report import catalogue, inputs, page

RELOAD_S = 5
"""Seconds after which a browser reloads the page."""


class LivePage:
    """`report.html` with the rows that a sweep has so far.

    Args:
        out: The sweep's CSV file.
        folder: Folder of the page; empty for no page.
        cells: Number of cells of the whole sweep.

    Raises:
        ValueError: the page cannot be written there.
    """

    def __init__(self, out: Path, folder: str, cells: int) -> None:
        self.out, self.cells = out, cells
        self.path = Path(folder) / "report.html" if folder else None
        if self.path is not None:
            page.check_writable(self.path, "watch")

    def write(self, done: int, ended: bool = False) -> None:
        """Write the page. If that fails print why, and continue the sweep.

        Args:
            done: Number of cells that have a row.
            ended: Whether the sweep is over, so that browsers need not reload the page.
        """
        if self.path is None:
            return
        given = inputs.read([self.out] if self.out.exists() else [])
        cards = catalogue.cards(given, inputs.drawable(given))
        state = "ended" if ended else f"running, reloaded every {RELOAD_S} s"
        heading = f"{done} of {self.cells} cells of {self.out.name}; {state}"
        text = page.html(given, cards, 0 if ended else RELOAD_S, heading)
        try:
            page.write(text, self.path)
        except OSError as error:
            print(f"watch: {self.path}: {error.strerror}", file=sys.stderr)
