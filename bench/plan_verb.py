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
    runs = [replace(base, method=name) for name in METHODS]
    refusals = [_refusal(run) for run in runs]
    if all(refusals):
        raise ValueError(refusals[0])
    lines, fitting = [], 0
    for run, refusal in zip(runs, refusals, strict=True):
        if refusal:
            lines.append({"method": run.method, "fits": f"invalid: {refusal}"})
            continue
        row = _counted(run, parsed.out)
        fitting += row["status"] == "ok"
        length, limit = plan.longest(run, _teller(run))
        if length and length != run.seq_len:
            _counted(replace(run, seq_len=length), parsed.out)
        lines.append(_line(row) | {"longest": length, "limit": limit})
    print(f"{base.model.label} on {base.world_size} x {base.hardware}, {base.seq_len} tokens, GiB")
    print(pd.DataFrame(lines).fillna("").to_string(index=False))
    return 0 if fitting else 1


def _refusal(run: RunConfig) -> str:
    """Why a method cannot run this; empty if it can."""
    try:
        options.check(run)
    except ValueError as error:
        return str(error)
    return ""


def _counted(run: RunConfig, out: str) -> dict[str, Any]:
    """The row of a dry run, also written if there is a file for it."""
    started = time.monotonic()
    outcome = dryrun.columns(run, dryrun.counted(run))
    row = launch.finish_row(run, outcome, time.monotonic() - started)
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
