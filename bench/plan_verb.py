"""``python -m bench plan``: which methods fit, and the longest sequence of each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from bench import dryrun, launch, options, plan, rows
from methods import METHODS
from odysseus.config import RunConfig

GIB = 2**30
_KINDS = ("parameters", "gradients", "optimizer", "activations", "communication")


def main(arguments: list[str]) -> int:
    """Print a line for every method; 0 when one of them fits at the length asked for, else 1.

    Raises:
        ValueError: no method can run what is asked for.
    """
    parser = options.parser(
        "plan",
        "Whether each method fits at --seq_len, its memory, and the longest sequence that fits.",
    )
    options.add_run_options(parser)
    parser.add_argument(
        "--out", type=str, default="", help="CSV file for the rows: at --seq_len and the longest."
    )
    parser.set_defaults(dry_run=True, hardware="h100-80g", dtype="bf16", world_size=8)
    parsed = options.parse(parser, arguments)
    base = replace(options.run_config(parsed), dry_run=True)
    if parsed.out:
        rows.check_writable(Path(parsed.out))
    runs = [_by(name, base) for name in METHODS]
    refusals = [_refusal(run) for run in runs]
    if all(refusals):
        raise ValueError(refusals[0])
    lines, fitting = [], 0
    for run, refusal in zip(runs, refusals, strict=True):
        if refusal:
            lines.append({"method": run.method, "fits": f"invalid: {refusal}"})
            continue
        started = time.monotonic()
        row = _row(run, dryrun.counted(run), started, parsed.out)
        fitting += row["status"] == "ok"
        started = time.monotonic()
        found = plan.longest(run, _teller(run))
        if found.counted is not None and found.seq_len != run.seq_len:
            _row(replace(run, seq_len=found.seq_len), found.counted, started, parsed.out)
        lines.append(_line(row) | {"longest": found.seq_len, "limit": found.limit})
    print(f"{base.model.label} on {base.world_size} x {base.hardware}, {base.seq_len} tokens, GiB")
    print(pd.DataFrame(lines).fillna("").to_string(index=False))
    return 0 if fitting else 1


def _by(method: str, base: RunConfig) -> RunConfig:
    """The run by another method; what is ulysses's own stays with it."""
    chunks = base.ulysses_head_chunks if method == "ulysses" else 1
    return replace(base, method=method, ulysses_head_chunks=chunks)


def _refusal(run: RunConfig) -> str:
    """Why a method cannot run this; empty if it can."""
    try:
        options.check(run)
    except ValueError as error:
        return str(error)
    return ""


def _row(run: RunConfig, counted: dryrun.Counted, started: float, out: str) -> dict[str, Any]:
    """The row of a dry run, also written if there is a file for it; wall_s is since it started, of
    a longest sequence with the search for it."""
    wall_s = time.monotonic() - started
    row = launch.finish_row(run, dryrun.columns(run, counted), wall_s)
    if out:
        rows.append(Path(out), row)
    return row


def _line(row: dict[str, Any]) -> dict[str, Any]:
    """What the table says of a row."""
    memory = {kind: row[f"peak_memory_{kind}_bytes"] / GIB for kind in _KINDS}
    memory |= {"peak": row["peak_memory_bytes"] / GIB, "host": row["peak_host_bytes"] / GIB}
    shown = {name: f"{value:.1f}" for name, value in memory.items()}
    return {"method": row["method"], "fits": "yes" if row["status"] == "ok" else "no", **shown}


def _teller(run: RunConfig) -> Callable[[int, plan.Need], None]:
    def tell(length: int, need: plan.Need) -> None:
        print(f"{run.method}: {length} tokens take {need.share:.1%}", file=sys.stderr)

    return tell
