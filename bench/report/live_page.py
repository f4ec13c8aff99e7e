"""The page of a sweep while it runs: written anew as each row lands, between cells, so that drawing
takes no time from what is measured."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.report import catalogue, inputs, page

RELOAD_S = 5
"""How often a browser reads the page again."""


class LivePage:
    """`report.html` of a sweep's rows so far.

    Args:
        out: The sweep's CSV file.
        folder: Where the page goes; empty for no page.

    Raises:
        ValueError: the folder cannot be made.
    """

    def __init__(self, out: Path, folder: str, cells: int) -> None:
        self.out, self.cells = out, cells
        self.path = Path(folder) / "report.html" if folder else None
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"watch is {folder!r}: {error.strerror}; valid: a folder that can be made"
            ) from None

    def write(self, done: int, ended: bool = False) -> None:
        """Write the page; a sweep goes on without one that cannot be written.

        Args:
            done: Cells that have a row.
            ended: Whether the sweep is over, so that browsers need not read it again.
        """
        if self.path is None:
            return
        given = inputs.read([self.out] if self.out.exists() else [])
        cards = catalogue.cards(given, inputs.drawable(given))
        state = "ended" if ended else f"running, read again every {RELOAD_S} s"
        heading = f"{done} of {self.cells} cells of {self.out.name}; {state}"
        text = page.html(given, cards, 0 if ended else RELOAD_S, heading)
        try:
            page.write(text, self.path)
        except OSError as error:
            print(f"watch: {self.path}: {error.strerror}", file=sys.stderr)
