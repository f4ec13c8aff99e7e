"""Predict the time of a dry run's step on a profile, and make its row."""

from __future__ import annotations

from typing import Any

from bench.simulator import dry_run, interval, target
from bench.simulator.ranks import busiest_rank, share_of_scores, with_most_rows
from bench.simulator.timeline import Timeline, simulate
from bench.theory import model_flops
from odysseus.config.run import RunConfig


def timeline(run: RunConfig, counted: dry_run.Counted) -> Timeline | None:
    """Simulate the slowest rank's step, or that of the rank that the run names; None without speeds
    in the profile or without a program."""
    known = target.clock(run)
    if known is None or not counted.program:
        return None
    if run.rank >= 0:
        return simulate(counted.program, known)
    programs = (
        counted.program
        if rank == counted.rank
        else dry_run.count(run, rank, with_program=True).program
        for rank in _slowest(run, counted.rank)
    )
    return max((simulate(program, known) for program in programs), key=lambda one: one.step_s)


def _slowest(run: RunConfig, counted: int) -> list[int]:
    """Return the ranks among which is the one that the others wait for: on a ring in contiguous
    order, one at its end; where heads do not divide, one that has the most; where experts get
    unequal loads, one whose experts get the most rows.

    Args:
        counted: The rank that is named if it is as slow as the busiest one.
    """
    busiest = busiest_rank(run)
    most, own = (share_of_scores(run, rank) for rank in (busiest, counted))
    return [*dict.fromkeys([counted if own == most else busiest, *with_most_rows(run)])]


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
