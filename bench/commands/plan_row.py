"""Rows and checks that several programs of ``plan`` share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import rows
from bench.config import checks
from bench.hardware import profiles
from bench.planner.longest import by_method
from bench.runner import launch
from bench.simulator import target
from methods import label_of
from odysseus.config.run import RunConfig

GIB = 2**30


def planned_row(
    run: RunConfig,
    columns: dict[str, Any],
    started: float,
    out: str,
    limit: str = "",
    toggle: str = "",
) -> dict[str, Any]:
    """Return the row of a dry run, and append it to a file if one is named.

    Args:
        columns: The row's own columns, see :func:`bench.simulator.predict.columns`.
        started: Monotonic clock, in seconds, when the dry run started; the row's wall_s counts
            from there. For a longest sequence this is the start of the search.
        out: CSV file; empty writes none.
        limit: Memory that keeps the sequence from being longer (GPU or host), if this is the
            longest that fits.
        toggle: The toggle that a rung of a ladder adds; empty if this is no rung.
    """
    wall_s = time.monotonic() - started
    row = launch.finish_row(run, [columns], wall_s)
    row |= {"longest_limit": limit or None, "ladder_toggle": toggle or None}
    if out:
        rows.append(Path(out), row)
    return row


def checked_runs(base: RunConfig, methods: Sequence[str]) -> tuple[list[RunConfig], dict[str, str]]:
    """Return the run with each method that can run it, and by label why others cannot.

    Raises:
        ValueError: no method can run it.
    """
    runs = [by_method(name, base) for name in methods]
    refusals = [checks.refusal(run) for run in runs]
    if all(refusals):
        raise ValueError(refusals[0])
    pairs = [*zip(runs, refusals, strict=True)]
    refused = {label_of(run.method): refusal for run, refusal in pairs if refusal}
    return [run for run, refusal in pairs if not refusal], refused


def check_speeds(base: RunConfig) -> None:
    """Raise ValueError unless the hardware profile has speeds to predict times with."""
    if target.clock(base) is None:
        raise ValueError(
            f"plan by time needs speeds, which hardware = {base.hardware} does not have; "
            f"valid: {profiles.with_speeds()}"
        )
