"""The page of a running sweep.

It is written again after each row, between cells, so that drawing takes no time from measurements.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.report import catalogue, inputs, page

RELOAD_S = 5
"""Seconds after which a browser reloads the page."""
DRAWING_S = 120
"""Seconds that starting workers and drawing the page may take, beside the time limit of a cell."""


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
        self._running = ""
        """The page as it was last written while the sweep runs."""
        self._done = 0
        if self.path is not None:
            page.check_writable(self.path, "watch")

    def write(self, done: int, limit_s: int = 0) -> None:
        """Write the page. If that fails print why, and continue the sweep.

        Args:
            done: Number of cells that have a row.
            limit_s: Seconds after which the next row is there at the latest; 0 at the end of the
                sweep, after which browsers need not reload the page.
        """
        if self.path is None:
            return
        given = inputs.read([self.out] if self.out.exists() else [])
        cards = catalogue.cards(given, inputs.drawable(given))
        progress = page.Progress(
            heading=f"{done} of {self.cells} cells of {self.out.name}",
            status=f"running, reloaded every {RELOAD_S} s" if limit_s else "ended",
            reload_s=RELOAD_S if limit_s else 0,
            news_s=limit_s + DRAWING_S,
        )
        text = page.html(given, cards, progress)
        self._write(text)
        self._running, self._done = text if limit_s else "", done

    def stopped(self) -> None:
        """Let the page say that the sweep stopped before its end. Do nothing after the end."""
        if self._running:
            heading = f"{self.out.name}: stopped after {self._done} of {self.cells} cells"
            self._write(page.with_progress(self._running, page.Progress(heading=heading)))

    def _write(self, text: str) -> None:
        assert self.path is not None, "only pages with a path are written"
        try:
            page.write(text, self.path)
        except OSError as error:
            print(f"watch: {self.path}: {error.strerror}", file=sys.stderr)
