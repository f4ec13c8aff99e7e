"""How long a dry run's step takes on a profile: the columns of its row, and its trace."""

from __future__ import annotations

from typing import Any

from bench.simulator import dry_run, target
from bench.simulator.timeline import Timeline, simulate
from bench.theory import model_flops
from odysseus.config.run import RunConfig
from odysseus.parallel.ring_order import share_of_attention


def timeline(run: RunConfig, counted: dry_run.Counted) -> Timeline | None:
    """The slowest rank's step in time; None where the profile has no speeds or the program was not
    noted."""
    known = target.clock(run)
    if known is None or not counted.program:
        return None
    return simulate(_slowest(run, counted).program, known)


def _slowest(run: RunConfig, counted: dry_run.Counted) -> dry_run.Counted:
    """The rank that is waited for: on a ring in contiguous order, one of its last place."""
    ring = run.ring_parallel_size
    shares = [share_of_attention(run.ring_order, ring, place) for place in range(ring)]
    busiest = shares.index(max(shares))
    if run.rank >= 0 or shares[counted.place] == shares[busiest]:
        return counted
    return dry_run.count(run, dry_run.rank_of_place(run, busiest), with_program=True)


def count(run: RunConfig) -> dry_run.Counted:
    """As :func:`bench.simulator.dry_run.counted`, with the program where the profile has speeds."""
    return dry_run.counted(run, with_program=target.clock(run) is not None)


def columns(
    run: RunConfig, counted: dry_run.Counted, found: Timeline | None = None
) -> dict[str, Any]:
    """The columns of a dry run's row, those of time where it has a timeline.

    Args:
        found: The timeline, if it is there already.
    """
    known, found = target.clock(run), found or timeline(run, counted)
    if found is None or known is None:
        return dry_run.columns(run, counted)
    step_ms, split = found.step_s * 1e3, found.split_s()
    return dry_run.columns(run, counted) | {
        **model_flops.speed_columns(run, step_ms, known.speeds.peak_flops_per_s),
        "peak_flops_source": "hardware profile",
        "step_ms_p50": step_ms,
        "compute_ms": split["compute"] * 1e3,
        "exposed_comm_ms": split["communication"] * 1e3,
        "exposed_offload_ms": split["offload"] * 1e3,
        "idle_ms": split["idle"] * 1e3,
    }
