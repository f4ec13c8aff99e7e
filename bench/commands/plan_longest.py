"""Print the memory of each method at one length, and the longest sequence that fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from bench import pool
from bench.commands import plan_advice
from bench.commands.plan_row import GIB, checked_runs, planned_row
from bench.commands.progress import Search, bar, say
from bench.planner import longest
from bench.planner.dry_runs import DryRuns
from bench.simulator import fit
from methods import label_of
from odysseus.config.run import RunConfig

_KINDS = ("parameters", "gradients", "optimizer", "activations", "communication")
_STEPS = 10
"""Dry runs that the search for one method takes as a rule."""


def main(base: RunConfig, methods: Sequence[str], out: str) -> int:
    """Print a line for every method at one layout; return 0 if one fits, else 1.

    If none fits, print which memory savings would make it fit.

    Args:
        methods: The methods that are planned.
        out: CSV file for the rows; empty writes none.

    Raises:
        ValueError: no method can run the layout.
    """
    runs, refused = checked_runs(base, methods)
    with pool.workers() as processes, bar(_STEPS * len(runs), "dry run") as shown:
        dry_runs = DryRuns(processes)
        plan = partial(_plan, dry_runs=dry_runs, shown=shown, out=out)
        with pool.waiting(processes, len(runs)) as threads:
            lines = [*threads.map(plan, runs)]
        shown.close()
        print(
            f"{base.model.label} on {base.world_size} x {base.hardware}, {base.seq_len} tokens, GiB"
        )
        lines += [{"method": name, "fits": f"invalid: {why}"} for name, why in refused.items()]
        order = [label_of(name) for name in methods]
        lines.sort(key=lambda line: order.index(line["method"]))
        print(pd.DataFrame(lines).fillna("").to_string(index=False), flush=True)
        if any(line["fits"] == "yes" for line in lines):
            return 0
        plan_advice.advise(runs, dry_runs)
    return 1


def _plan(run: RunConfig, dry_runs: DryRuns, shown: Any, out: str) -> dict[str, Any]:
    """Plan one method; return its line of the table."""
    search = Search(shown, _STEPS)
    started = time.monotonic()
    row = planned_row(run, dry_runs.whole(run, with_time=True).columns, started, out)
    line = _line(row)
    name = line["method"]
    say(f"{name}: {run.seq_len} tokens take {line['peak']} GiB on a GPU, fits: {line['fits']}")
    search.step()
    started = time.monotonic()
    result = longest.longest(run, _reporter(run, search), dry_runs)
    if result.whole is not None:
        at_longest = replace(run, seq_len=result.seq_len)
        planned_row(at_longest, result.whole.columns, started, out, result.limit)
    search.end()
    say(f"{name}: the longest is {result.seq_len} tokens")
    return line | {"longest": result.seq_len, "limit": result.limit}


def _line(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's line of the table, memory in GiB."""
    memory = {kind: row[f"peak_memory_{kind}_bytes"] / GIB for kind in _KINDS}
    memory |= {"peak": row["peak_memory_bytes"] / GIB, "host": row["peak_host_bytes"] / GIB}
    shown = {name: f"{value:.1f}" for name, value in memory.items()}
    return {"method": row["method"], "fits": "yes" if row["status"] == "ok" else "no", **shown}


def _reporter(run: RunConfig, search: Search) -> Callable[[int, fit.Need], None]:
    """Return a function that prints each length that the search tries."""

    def report(length: int, need: fit.Need) -> None:
        search.step()
        say(f"{label_of(run.method)}: {length} tokens take {need.share:.1%}")

    return report
