"""Print the memory of each method at one length, and the longest sequence that fits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd

from bench.commands.plan_row import GIB, planned_row
from bench.config import checks
from bench.planner import longest
from bench.simulator import fit, predict
from methods import label_of
from odysseus.config.run import RunConfig

_KINDS = ("parameters", "gradients", "optimizer", "activations", "communication")


def main(base: RunConfig, out: str) -> int:
    """Print a line for every method at one layout; return 0 if one fits, else 1.

    Args:
        out: CSV file for the rows; empty writes none.

    Raises:
        ValueError: no method can run the layout.
    """
    runs = [longest.by_method(name, base) for name in longest.planned_methods(base)]
    refusals = [checks.refusal(run) for run in runs]
    if all(refusals):
        raise ValueError(refusals[0])
    lines, fitting = [], 0
    for run, refusal in zip(runs, refusals, strict=True):
        if refusal:
            lines.append({"method": label_of(run.method), "fits": f"invalid: {refusal}"})
            continue
        started = time.monotonic()
        row = planned_row(run, predict.count(run), started, out)
        fitting += row["status"] == "ok"
        lines.append(_line(row) | _longest(run, out))
    print(f"{base.model.label} on {base.world_size} x {base.hardware}, {base.seq_len} tokens, GiB")
    print(pd.DataFrame(lines).fillna("").to_string(index=False))
    return 0 if fitting else 1


def _longest(run: RunConfig, out: str) -> dict[str, Any]:
    """Find the longest sequence that fits; return its columns of the table."""
    started = time.monotonic()
    result = longest.longest(run, _print_length(run))
    if result.counted is not None:
        at_longest = replace(run, seq_len=result.seq_len)
        planned_row(at_longest, result.counted, started, out, result.limit)
    return {"longest": result.seq_len, "limit": result.limit}


def _line(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's line of the table, memory in GiB."""
    memory = {kind: row[f"peak_memory_{kind}_bytes"] / GIB for kind in _KINDS}
    memory |= {"peak": row["peak_memory_bytes"] / GIB, "host": row["peak_host_bytes"] / GIB}
    shown = {name: f"{value:.1f}" for name, value in memory.items()}
    return {"method": row["method"], "fits": "yes" if row["status"] == "ok" else "no", **shown}


def _print_length(run: RunConfig) -> Callable[[int, fit.Need], None]:
    """Return a function that prints each length that the search tries."""

    def print_length(length: int, need: fit.Need) -> None:
        print(f"{label_of(run.method)}: {length} tokens take {need.share:.1%}", file=sys.stderr)

    return print_length
