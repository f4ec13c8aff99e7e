"""Resuming a sweep: which of its cells have a row that is enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import rows
from bench.runner.claims import Key
from odysseus.config.run import RunConfig

Amount = tuple[float, float]
"""Rounds, and steps of each, that a row rests on."""


def key_of(run: RunConfig) -> Key:
    """Return the key of a cell's row, see :func:`bench.rows.key`."""
    return rows.key(rows.identity(run))


class Resumed:
    """The rows of a sweep's file.

    Args:
        out: The CSV file.
        retry_failed: Whether rows that are not ok count as none.

    Raises:
        ValueError: the file is no CSV of rows.
    """

    def __init__(self, out: Path, retry_failed: bool) -> None:
        self.out = out
        table = rows.read(out, rows.OF_EVERY_ROW)
        self._rows = len(table)
        self._known = _amounts(
            row for row in table.to_dict("records") if row["status"] == "ok" or not retry_failed
        )

    def has(self, run: RunConfig) -> bool:
        """Whether the cell had a row, with as many rounds and steps, when the sweep started."""
        return _is_enough(self._known, run)

    def has_less(self, run: RunConfig) -> bool:
        """Whether the cell had a row then, but with fewer rounds or steps."""
        return key_of(run) in self._known and not self.has(run)

    def has_now(self, run: RunConfig) -> bool:
        """Whether this sweep or another one has added such a row since the start.

        Raises:
            OSError: the file is no longer one of rows, so that nothing can be added.
        """
        try:
            rows.check_writable(self.out)
            added = rows.read(self.out, rows.OF_EVERY_ROW)[self._rows :]
        except ValueError as error:
            raise OSError(str(error)) from None
        return _is_enough(_amounts(added.to_dict("records")), run)


def _amounts(records: Any) -> dict[Key, list[Amount]]:
    """The amounts of the rows of each cell."""
    amounts: dict[Key, list[Amount]] = {}
    for row in records:
        amounts.setdefault(rows.key(row), []).append(_amount(row))
    return amounts


def _amount(row: Mapping[Any, Any]) -> Amount:
    """The rounds and steps of a row, any number for one without measured times. A row from before
    these columns has one round of an unknown number of steps, which is taken as enough."""
    if row["status"] != "ok" or row.get("mode") == "dry_run":
        return math.inf, math.inf
    rounds, steps = str(row.get("rounds", "")), str(row.get("steps", ""))
    return int(rounds) if rounds.isdigit() else 1, int(steps) if steps.isdigit() else math.inf


def _is_enough(known: dict[Key, list[Amount]], run: RunConfig) -> bool:
    amounts = known.get(key_of(run), ())
    return any(rounds >= run.rounds and steps >= run.steps for rounds, steps in amounts)
