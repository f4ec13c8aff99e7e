"""Progress of a plan on standard error: lines with results, and below them a bar with time left.

The bar is only shown on a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def bar(total: int, unit: str) -> Iterator[tqdm[Any]]:
    """Yield a bar of this many units."""
    with tqdm(total=total, unit=unit, smoothing=0, file=sys.stderr, disable=None) as shown:
        yield shown


def say(line: str) -> None:
    """Print a line above the bar."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


class Search:
    """A search's part of a bar: its number of steps is known only when it ends.

    Args:
        shown: The bar of several searches, to whose total this one has added its expected steps.
        expected: The steps that a search takes as a rule.
    """

    def __init__(self, shown: tqdm[Any], expected: int) -> None:
        self.shown, self.expected, self.taken = shown, expected, 0

    def step(self) -> None:
        """Note a step; one more than expected makes the bar longer."""
        self.taken += 1
        self._expect(max(self.taken, self.expected))
        self.shown.update()

    def end(self) -> None:
        """Take the steps that were not needed off the bar."""
        self._expect(self.taken)

    def _expect(self, steps: int) -> None:
        with self.shown.get_lock():  # searches may run in several threads
            self.shown.total = steps + (self.shown.total or 0) - self.expected
            self.expected = steps
            self.shown.refresh()
