"""Rounds: a cell is measured several times, in turn with the cells that differ in their method.

The speed of a shared machine changes from minute to minute. Cells that are compared are therefore
measured in turn, and how far a cell's rounds lie apart is part of its row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import numpy as np

from bench.theory import model_flops
from odysseus.config.run import RunConfig

NOISY = 0.1
"""A cell is noisy if its slowest round takes this share longer than its fastest one, or if other
processes kept this share of the machine's cores busy meanwhile."""
TIMES = "step_times_ms"
"""Milliseconds of each measured step of a round, of the slowest rank; no column of a row."""
PEAK = "peak_flops_per_s"
"""FLOP/s of one rank that MFU is a fraction of, or None; no column of a row."""
CORES = "cores"
"""Cores of the machine; no column of a row."""
Outcome = dict[str, Any]


def rounds_of(run: RunConfig) -> int:
    """Return the rounds of a cell. Those of a dry run would all be the same."""
    return 1 if run.dry_run else run.rounds


def alternating(cells: Iterable[RunConfig]) -> Iterator[list[RunConfig]]:
    """Yield the cells that differ in nothing but their method together.

    Cells with one round are each alone, in their order.
    """
    groups: dict[Any, list[RunConfig]] = {}
    for number, run in enumerate(cells):
        alike = number if rounds_of(run) == 1 else replace(run, method="")
        groups.setdefault(alike, []).append(run)
    yield from groups.values()


def merged(outcomes: list[Outcome], run: RunConfig) -> Outcome:
    """Return a cell's outcome from those of its rounds: the columns of time from all rounds, the
    others from the first; if a round was not timed, its outcome."""
    if untimed := next((outcome for outcome in outcomes if TIMES not in outcome), None):
        return untimed
    times_ms = [outcome[TIMES] for outcome in outcomes]
    peak = outcomes[0][PEAK]
    load = fmean(outcome["other_load"] for outcome in outcomes)
    medians = [median(times) for times in times_ms]
    low, high = min(medians), max(medians)
    several = {"round_ms_low": low, "round_ms_high": high} if len(medians) > 1 else {}
    is_noisy = high > (1 + NOISY) * low or load > NOISY * outcomes[0][CORES]
    return (
        {name: of for name, of in outcomes[0].items() if name not in (TIMES, PEAK, CORES)}
        | time_columns(run, times_ms, peak)
        | {"peak_flops_source": "data sheet" if peak else None}
        | {"rounds": len(outcomes), "steps": run.steps, "warmup_steps": run.warmup_steps}
        | {"other_load": round(load, 3), "noisy": is_noisy}
        | several
    )


def time_columns(
    run: RunConfig, times_ms: list[list[float]], peak_flops_per_s: float | None
) -> Outcome:
    """Return the columns of time.

    Args:
        times_ms: Milliseconds of the slowest rank by round and step.
        peak_flops_per_s: FLOP/s of one rank that MFU is a fraction of; None for no MFU.
    """
    p20, p50, p80 = np.percentile(times_ms, [20, 50, 80])
    quantiles = {"step_ms_p50": p50, "step_ms_p20": p20, "step_ms_p80": p80}
    return quantiles | model_flops.speed_columns(run, p50, peak_flops_per_s)
