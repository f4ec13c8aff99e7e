"""Predict the time of a dry run's step on a profile, and make its row."""

from __future__ import annotations

from typing import Any

from bench.simulator import dry_run, interval, target
from bench.simulator.ranks import busiest_rank, share_of_scores
from bench.simulator.timeline import Timeline, simulate
from bench.theory import model_flops
from odysseus.config.run import RunConfig


def timeline(run: RunConfig, counted: dry_run.Counted) -> Timeline | None:
    """Simulate the slowest rank's step; None without speeds in the profile or without a program."""
    known = target.clock(run)
    if known is None or not counted.program:
        return None
    return simulate(_slowest(run, counted).program, known)


def _slowest(run: RunConfig, counted: dry_run.Counted) -> dry_run.Counted:
    """Return the rank that the others wait for: on a ring in contiguous order, one at its end;
    where heads do not divide, one that has the most."""
    busiest = busiest_rank(run)
    most, own = (share_of_scores(run, rank) for rank in (busiest, counted.rank))
    if run.rank >= 0 or own == most:
        return counted
    return dry_run.count(run, busiest, with_program=True)


def count(run: RunConfig, only_memory: bool = False) -> dry_run.Counted:
    """Count a step, with its program if the profile has speeds.

    Args:
        only_memory: Whether to count neither traffic nor FLOPs.
    """
    return dry_run.counted(run, target.clock(run) is not None, only_memory)


def columns(
    run: RunConfig, counted: dry_run.Counted, simulated: Timeline | None = None
) -> dict[str, Any]:
    """Return the columns of a dry run's row, those of time only where it has a timeline.

    Args:
        simulated: The timeline, if it was simulated before.
    """
    return dry_run.columns(run, counted) | time_columns(run, simulated or timeline(run, counted))


def time_columns(run: RunConfig, simulated: Timeline | None) -> dict[str, Any]:
    """Return the columns of time of a dry run's row; empty without a timeline."""
    known = target.clock(run)
    if simulated is None or known is None:
        return {}
    times = times_ms(simulated)
    return {
        **model_flops.speed_columns(run, times["step_ms_p50"], known.speeds.peak_flops_per_s),
        "peak_flops_source": "hardware profile",
        **times,
        **interval.columns(run, times["step_ms_p50"]),
    }


def times_ms(simulated: Timeline) -> dict[str, float]:
    """Return the milliseconds of a step and of its parts, by column of a row."""
    split = simulated.split_s()
    return {
        "step_ms_p50": simulated.step_s * 1e3,
        "compute_ms": split["compute"] * 1e3,
        "exposed_comm_ms": split["communication"] * 1e3,
        "exposed_offload_ms": split["offload"] * 1e3,
        "idle_ms": split["idle"] * 1e3,
    }
