"""Rows and checks that several programs of ``plan`` share."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench import rows
from bench.hardware import profiles
from bench.runner import launch
from bench.simulator import dry_run, predict, target
from odysseus.config.run import RunConfig

GIB = 2**30


def planned_row(
    run: RunConfig, counted: dry_run.Counted, started: float, out: str, limit: str = ""
) -> dict[str, Any]:
    """Return the row of a dry run, and append it to a file if one is named.

    Args:
        started: Monotonic clock, in seconds, when the dry run started; the row's wall_s counts
            from there. For a longest sequence this is the start of the search.
        out: CSV file; empty writes none.
        limit: Memory that keeps the sequence from being longer (GPU or host), if this is the
            longest that fits.
    """
    wall_s = time.monotonic() - started
    row = launch.finish_row(run, [predict.columns(run, counted)], wall_s)
    row["longest_limit"] = limit or None
    if out:
        rows.append(Path(out), row)
    return row


def check_speeds(base: RunConfig) -> None:
    """Raise ValueError unless the hardware profile has speeds to predict times with."""
    if target.clock(base) is None:
        raise ValueError(
            f"plan by time needs speeds, which hardware = {base.hardware} does not have; "
            f"valid: {profiles.with_speeds()}"
        )
