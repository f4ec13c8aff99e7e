"""Rows of cells whose rounds are not all measured yet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench import rows
from bench.runner import launch
from bench.runner.rounds import rounds_of
from odysseus.config.run import RunConfig


class Unfinished:
    """The row of a cell. It is appended to a file after the cell's last round or first failure.

    Args:
        run: The cell.
        out: The CSV file.
        writes: Whether this rank writes it.

    Attributes:
        status: The row's status; empty until the last round.
    """

    def __init__(self, run: RunConfig, out: Path, writes: bool = True) -> None:
        self.run, self._out, self._writes = run, out, writes
        self._outcomes: list[dict[str, Any]] = []
        self._wall_s = 0.0
        self.status = ""

    @property
    def begun(self) -> bool:
        """Whether a round has been measured."""
        return bool(self._outcomes)

    def add(self, outcome: dict[str, Any], started: float) -> None:
        """Add the outcome of a round.

        Args:
            started: Monotonic clock, in seconds, when the round started.
        """
        self._outcomes.append(outcome)
        self._wall_s += time.monotonic() - started
        if outcome["status"] == "ok" and len(self._outcomes) < rounds_of(self.run):
            return
        if self._writes:
            rows.append(self._out, launch.finish_row(self.run, self._outcomes, self._wall_s))
        self.status = outcome["status"]
