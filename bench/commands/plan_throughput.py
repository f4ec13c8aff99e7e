"""Print every layout that fits at one length, fastest first."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from bench import pool
from bench.commands import plan_advice
from bench.commands.plan_row import GIB, check_speeds, planned_row
from bench.commands.progress import bar, say
from bench.commands.summary import summary
from bench.config import checks
from bench.planner import ranking
from bench.planner.dry_runs import DryRuns
from bench.simulator import predict
from methods import label_of
from odysseus.config.run import RunConfig


def main(base: RunConfig, methods: Sequence[str], out: str) -> int:
    """Print the table, and the row of the fastest layout with all blocks counted.

    Return 0 if a layout fits, else print what to add and return 1.

    Args:
        methods: The methods that are planned.
        out: CSV file for that row; empty writes none.

    Raises:
        ValueError: the profile has no speeds, or no layout can run with these options.
    """
    check_speeds(base)
    layouts = [*ranking.layouts(base, methods)]
    if not layouts:
        raise ValueError(checks.refusal(base) or "no size of the axes can run this")
    started = time.monotonic()
    with pool.workers() as processes:
        with bar(len(layouts), "layout") as shown:

            def report(line: str) -> None:
                say(line)
                shown.update()

            choices = ranking.ranked(layouts, report, processes)
        print(f"{base.model.label} on {base.world_size} x {base.hardware}, {base.seq_len} tokens")
        if not choices:
            plan_advice.advise([*_widest(layouts)], DryRuns(processes))
            return 1
    lines = pd.DataFrame([_line(choice) for choice in choices])
    if (lines["tensor"] == 1).all():
        del lines["tensor"]
    print(lines.to_string(index=False), flush=True)
    best = choices[0].run
    row = planned_row(best, predict.columns(best, predict.count(best)), started, out)
    print(f"the first, all blocks counted: {summary(row)}")
    return 0 if row["status"] == "ok" else 1


def _widest(layouts: Sequence[RunConfig]) -> Iterator[RunConfig]:
    """Yield the layout of each method that splits a sample over the most ranks."""
    for method in dict.fromkeys(run.method for run in layouts):
        alike = [run for run in layouts if run.method == method]
        yield max(alike, key=lambda run: (run.shards, run.sequence_size))


def _line(choice: ranking.Choice) -> dict[str, Any]:
    """Return a layout's line of the table."""
    run, parts = choice.run, choice.parts_ms
    step_ms = parts["step_ms_p50"]
    names = ("compute", "comm", "offload", "idle")
    shares = {
        name: f"{parts[column] / step_ms:.0%}"
        for name, column in zip(names, ranking.PARTS[1:], strict=True)
    }
    return {
        "method": label_of(run.method) if max(run.block_ranks, run.expert_ranks) > 1 else "-",
        "sequence": run.sequence_size,
        "tensor": run.tensor_parallel_size,
        "ring": run.ring_parallel_size,
        "replicas": run.data_parallel_size,
        "step_s": f"{step_ms / 1e3:.2f}",
        "tokens/s/GPU": f"{choice.tokens_per_s_per_gpu:.0f}",
        **shares,
        "GPU GiB": f"{choice.need.gpu / GIB:.1f}",
        "host GiB": f"{choice.need.host / GIB:.0f}",
        "tricks": choice.tricks,
    }
