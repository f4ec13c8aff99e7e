"""``python -m bench plan``: which methods fit, and the longest sequence of each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bench import rows
from bench.commands.run import summary
from bench.config import checks, options
from bench.hardware import profiles
from bench.planner import longest, method_map, ranking
from bench.report import draw_matplotlib
from bench.report.charts import method_map as map_chart
from bench.runner import launch
from bench.simulator import dry_run, fit, predict, target
from methods import label_of
from methods.from_file import is_file
from odysseus.config.run import RunConfig

GIB = 2**30
_KINDS = ("parameters", "gradients", "optimizer", "activations", "communication")


def main(arguments: list[str]) -> int:
    """Print a line for every method, or for every layout that fits; 0 when one fits, else 1.

    Raises:
        ValueError: no method can run what is asked for.
    """
    parser = options.parser(
        "plan",
        "Which method fits at --seq_len and the longest sequence of each, or which is fastest.",
    )
    options.add_run_options(parser)
    parser.add_argument(
        "--out", type=str, default="", help="CSV file for the rows: at --seq_len and the longest."
    )
    parser.add_argument(
        "--objective",
        type=Literal["longest", "throughput"],
        default="longest",
        help="longest: each method's memory at --seq_len and the longest sequence that fits; "
        "throughput: all methods, sizes of axes and memory tricks that fit at --seq_len, fastest "
        "first. Sizes and tricks that are set stay.",
    )
    parser.add_argument(
        "--map",
        type=str,
        default="",
        help="Instead draw which method is fastest at every length and number of GPUs: files of "
        "this name and .png, .svg, and .csv, whose cells are not computed again. Not with --out.",
    )
    parser.add_argument(
        "--map_seq_lens",
        type=list[int],
        default=[2**k for k in range(13, 22)],
        help="Lengths of the map, in tokens.",
    )
    parser.add_argument(
        "--map_world_sizes",
        type=list[int],
        default=[8, 16, 32, 64, 128, 256],
        help="Numbers of GPUs of the map.",
    )
    parser.set_defaults(dry_run=True, hardware="h100-80g", dtype="bf16", world_size=8)
    parsed = options.parse(parser, arguments)
    base = replace(options.run_config(parsed), dry_run=True)
    if parsed.map and is_file(base.method):
        raise ValueError(f"method = {base.method} is not for a map; valid: a map without a file")
    if parsed.map:
        if parsed.out:
            raise ValueError(f"out = {parsed.out} is not for a map, which has a CSV; valid: none")
        return _map(base, Path(parsed.map), parsed.map_seq_lens, parsed.map_world_sizes)
    if parsed.out:
        rows.check_writable(Path(parsed.out))
    if parsed.objective == "throughput":
        return _throughput(base, parsed.out)
    return _longest(base, parsed.out)


def _longest(base: RunConfig, out: str) -> int:
    """Every method at one layout."""
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
        row = _row(run, predict.count(run), started, out)
        fitting += row["status"] == "ok"
        started = time.monotonic()
        found = longest.longest(run, _teller(run))
        if found.counted is not None:
            at_longest = replace(run, seq_len=found.seq_len)
            _row(at_longest, found.counted, started, out, found.limit)
        lines.append(_line(row) | {"longest": found.seq_len, "limit": found.limit})
    print(f"{base.model.label} on {base.world_size} x {base.hardware}, {base.seq_len} tokens, GiB")
    print(pd.DataFrame(lines).fillna("").to_string(index=False))
    return 0 if fitting else 1


def _throughput(base: RunConfig, out: str) -> int:
    """Every layout that fits, fastest first; the best one is counted whole for its row.

    Raises:
        ValueError: the profile has no speeds, or no layout can run what is asked for.
    """
    _check_speeds(base)
    if not any(ranking.layouts(base)):
        raise ValueError(checks.refusal(base) or "no size of the axes can run this")
    started = time.monotonic()
    found = ranking.ranked(ranking.layouts(base), lambda line: print(line, file=sys.stderr))
    print(f"{base.model.label} on {base.world_size} x {base.hardware}, {base.seq_len} tokens")
    if not found:
        print("nothing fits, with every memory trick on")
        return 1
    print(pd.DataFrame([_choice(choice) for choice in found]).to_string(index=False))
    best = found[0].run
    row = _row(best, predict.count(best), started, out)
    print(f"the first, all blocks counted: {summary(row)}")
    return 0 if row["status"] == "ok" else 1


def _map(base: RunConfig, path: Path, seq_lens: list[int], world_sizes: list[int]) -> int:
    """Draw the map of methods.

    Raises:
        ValueError: the profile has no speeds, or there is no place for the files.
    """
    _check_speeds(base)
    csv = path.with_name(f"{path.name}.csv")
    checks.check_file("map", csv)
    data = method_map.cells(base, seq_lens, world_sizes, csv)
    of = f"{base.model.label}, {base.dtype}, dry run, {base.hardware}"
    drawn = map_chart.chart(data, of, map_chart.changes(base, data))
    draw_matplotlib.save(draw_matplotlib.draw(drawn), path)
    print(f"{csv}, .png and .svg: {len(data)} cells")
    return 0


def _check_speeds(base: RunConfig) -> None:
    if target.clock(base) is None:
        raise ValueError(
            f"plan by time needs speeds, which hardware = {base.hardware} has none of; "
            f"valid: {profiles.with_speeds()}"
        )


def _choice(choice: ranking.Choice) -> dict[str, Any]:
    """What the table says of a layout."""
    run, parts = choice.run, choice.parts_ms
    step_ms = parts["step_ms_p50"]
    shares = {
        name: f"{parts[column] / step_ms:.0%}"
        for name, column in zip(
            ("compute", "comm", "offload", "idle"), ranking.PARTS[1:], strict=True
        )
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


def _row(
    run: RunConfig, counted: dry_run.Counted, started: float, out: str, limit: str = ""
) -> dict[str, Any]:
    """The row of a dry run, also written if there is a file for it; wall_s is since it started, of
    a longest sequence with the search for it.

    Args:
        limit: What is short of more, where this is the longest sequence that fits.
    """
    wall_s = time.monotonic() - started
    row = launch.finish_row(run, predict.columns(run, counted), wall_s)
    row["longest_limit"] = limit or None
    if out:
        rows.append(Path(out), row)
    return row


def _line(row: dict[str, Any]) -> dict[str, Any]:
    """What the table says of a row."""
    memory = {kind: row[f"peak_memory_{kind}_bytes"] / GIB for kind in _KINDS}
    memory |= {"peak": row["peak_memory_bytes"] / GIB, "host": row["peak_host_bytes"] / GIB}
    shown = {name: f"{value:.1f}" for name, value in memory.items()}
    return {"method": row["method"], "fits": "yes" if row["status"] == "ok" else "no", **shown}


def _teller(run: RunConfig) -> Callable[[int, fit.Need], None]:
    def tell(length: int, need: fit.Need) -> None:
        print(f"{label_of(run.method)}: {length} tokens take {need.share:.1%}", file=sys.stderr)

    return tell
