"""Print every layout that fits at one length, fastest first."""

from __future__ import annotations

import sys
import time
from typing import Any

import pandas as pd

from bench.commands.plan_row import GIB, check_speeds, planned_row
from bench.commands.summary import summary
from bench.config import checks
from bench.planner import ranking
from bench.simulator import predict
from methods import label_of
from odysseus.config.run import RunConfig


def main(base: RunConfig, out: str) -> int:
    """Print the table, and the row of the fastest layout with all blocks counted.

    Return 0 if a layout fits, else 1.

    Args:
        out: CSV file for that row; empty writes none.

    Raises:
        ValueError: the profile has no speeds, or no layout can run with these options.
    """
    check_speeds(base)
    if not any(ranking.layouts(base)):
        raise ValueError(checks.refusal(base) or "no size of the axes can run this")
    started = time.monotonic()
    choices = ranking.ranked(ranking.layouts(base), lambda line: print(line, file=sys.stderr))
    print(f"{base.model.label} on {base.world_size} x {base.hardware}, {base.seq_len} tokens")
    if not choices:
        print("nothing fits, even with every memory saving on")
        return 1
    print(pd.DataFrame([_line(choice) for choice in choices]).to_string(index=False))
    best = choices[0].run
    row = planned_row(best, predict.count(best), started, out)
    print(f"the first, all blocks counted: {summary(row)}")
    return 0 if row["status"] == "ok" else 1


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
        "method": label_of(run.method) if run.sequence_size > 1 else "-",
        "sequence": run.sequence_size,
        "ring": run.ring_parallel_size,
        "replicas": run.data_parallel_size,
        "step_s": f"{step_ms / 1e3:.2f}",
        "tokens/s/GPU": f"{choice.tokens_per_s_per_gpu:.0f}",
        **shares,
        "GPU GiB": f"{choice.need.gpu / GIB:.1f}",
        "host GiB": f"{choice.need.host / GIB:.0f}",
        "tricks": choice.tricks,
    }
