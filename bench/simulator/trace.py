"""Write a timeline in Chrome's trace format."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.simulator.program import HOST
from bench.simulator.timeline import Timeline
from methods import label_of
from odysseus.config.run import RunConfig
from odysseus.io import files


def _exact_us(seconds: float) -> float:
    """Round to microseconds in steps of 2^-10, which add up exactly.

    Viewers draw events that overlap, or that take no time, inside each other.
    """
    return round(seconds * 1e6 * 1024) / 1024


def write_trace(timeline: Timeline, path: Path, run: RunConfig) -> None:
    """Write a timeline in Chrome's trace format, which Perfetto and chrome://tracing open.

    It is a JSON object with traceEvents, times in microseconds; otherData describes the run. Each
    stream is a row, named after the kind of operation that takes most of its time. Operations that
    take no time are left out.
    """
    seconds: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    drawn = [s for s in timeline.spans if _exact_us(s.start_s) < _exact_us(s.end_s)]
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
    about = (
        f"{run.model.label}, {run.seq_len} tokens, {run.world_size} x {run.hardware}, {run.dtype}"
    )
    whole = {"otherData": {"method": label_of(run.method), "of": about}, "displayTimeUnit": "ms"}
    files.write(path, json.dumps(whole | {"traceEvents": events}))


def check_writable(path: Path) -> None:
    """Raise ValueError unless a trace can be written, over nothing but an earlier trace."""

    def foreign(path: Path) -> str:
        with path.open("rb") as file:
            is_trace = file.read(200).startswith(b'{"otherData": {"method": ')
        return "" if is_trace else "it is no trace of a dry run"

    files.check_output("trace", path, "a new file, or a trace that run wrote", foreign)
