"""How long a dry run's step takes on a profile: the columns of its row, and its trace."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.simulator import dry_run
from bench.simulator.program import HOST
from bench.simulator.timeline import Timeline, simulate
from bench.theory import model_flops
from odysseus.config.run import RunConfig
from odysseus.parallel.ring_order import share_of_attention


def timeline(run: RunConfig, counted: dry_run.Counted) -> Timeline | None:
    """The slowest rank's step in time; None where the profile has no speeds or the program was not
    noted."""
    known = dry_run.clock(run)
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
    return dry_run.counted(run, with_program=dry_run.clock(run) is not None)


def columns(
    run: RunConfig, counted: dry_run.Counted, found: Timeline | None = None
) -> dict[str, Any]:
    """The columns of a dry run's row, those of time where it has a timeline.

    Args:
        found: The timeline, if it is there already.
    """
    known, found = dry_run.clock(run), found or timeline(run, counted)
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


def _exact_us(seconds: float) -> float:
    """Microseconds in steps of 2^-10, which add up exactly: viewers nest what overlaps, and what
    takes no time."""
    return round(seconds * 1e6 * 1024) / 1024


def write_trace(found: Timeline, path: Path, run: RunConfig) -> None:
    """A timeline in Chrome's trace format (a JSON object with traceEvents, times in microseconds),
    which Perfetto and chrome://tracing open: a row a stream, named after where most of
    its time goes, without what takes none; the run is in otherData."""
    seconds: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    drawn = [s for s in found.spans if _exact_us(s.start_s) < _exact_us(s.end_s)]
    for span in drawn:
        seconds[span.op.stream][span.op.kind] += span.end_s - span.start_s
    rows = {stream: row for row, stream in enumerate(sorted(seconds, key=lambda s: (s != HOST, s)))}
    events: list[dict[str, Any]] = [
        {
            "ph": "M",
            "name": "thread_name",
            "pid": 0,
            "tid": row,
            "args": {"name": f"{stream}: {max(seconds[stream], key=seconds[stream].__getitem__)}"},
        }
        for stream, row in rows.items()
    ]
    for span in drawn:
        op, start_us, end_us = span.op, _exact_us(span.start_s), _exact_us(span.end_s)
        details = {"unit": op.unit, "bytes": op.bytes, "flops": op.flops, "sizes": op.sizes}
        if op.ranks:
            details |= {"ranks": len(op.ranks), "purpose": op.purpose}
        events.append(
            {
                "ph": "X",
                "name": op.name,
                "cat": op.kind,
                "pid": 0,
                "tid": rows[op.stream],
                "ts": start_us,
                "dur": end_us - start_us,
                "args": details,
            }
        )
    of = f"{run.model.label}, {run.seq_len} tokens, {run.world_size} x {run.hardware}, {run.dtype}"
    whole = {"otherData": {"method": run.method, "of": of}, "displayTimeUnit": "ms"}
    path.write_text(json.dumps(whole | {"traceEvents": events}))
