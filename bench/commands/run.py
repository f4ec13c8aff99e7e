"""``python -m bench run``: one cell, one row."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench import rows
from bench.config import checks, options
from bench.config.launched import launched_world_size
from bench.hardware import profiles
from bench.runner import join, launch
from bench.runner.advice import advice
from bench.simulator import dry_run, predict, target
from bench.simulator.placement import placement
from bench.simulator.trace import write_trace
from odysseus.config.run import RunConfig
from odysseus.io import checkpoint
from odysseus.memory.host_memory import ranks_per_node
from odysseus.parallel.mesh import pick_device


def main(arguments: list[str]) -> int:
    """Measure one cell and append its row; 0 when its status is ok, else 1.

    Raises:
        ValueError: the cell cannot be started.
    """
    parser = options.parser("run", "Measure one cell and append its row to a CSV file.")
    options.add_run_options(parser)
    parser.add_argument("--out", type=str, default="results/runs.csv", help="CSV file of rows.")
    parser.add_argument(
        "--explain_peak",
        type=bool,
        default=False,
        help="dry_run: also print where the peak is, and the ten largest tensors alive then.",
    )
    parser.add_argument(
        "--trace",
        type=str,
        default="",
        help="dry_run with a hardware profile: JSON file for the step in time, as Chrome and "
        "Perfetto read it.",
    )
    parser.add_argument(
        "--save",
        type=str,
        default="",
        help="Folder for the weights after the measured steps, as a Hugging Face checkpoint.",
    )
    parsed = options.parse(parser, arguments)
    run, launched = options.run_config(parsed, peers=True), launched_world_size()
    checks.check(run)
    checks.check_gpus(run, launched)
    out = Path(parsed.out)
    if os.environ.get("RANK", "0") == "0":
        rows.check_writable(out)
    if parsed.trace:
        _check_trace(run, Path(parsed.trace))
    if parsed.save:
        _check_save(run, Path(parsed.save))
    if run.dry_run:
        return _dry_run(run, out, parsed.explain_peak, parsed.trace)
    local = ranks_per_node(run.world_size)
    if os.environ.get("RANK", "0") == "0" and (
        run.ring_parallel_size > 1 or local < run.world_size
    ):
        print(f"placement: {placement(run, local)}", file=sys.stderr)
    if launched is None:
        for line in advice(run, pick_device(run.device)):
            print(f"advice: {line}", file=sys.stderr)
        return _finish(out, launch.run_cell(run, partial(launch.measure, save=parsed.save)))
    measure = partial(launch.measure, run, parsed.save)
    status = join.run_cell(run, measure, partial(_finish, out))
    return 1 if status != "ok" and os.environ["RANK"] == "0" else 0


def _check_trace(run: RunConfig, path: Path) -> None:
    """Raise ValueError unless there will be a timeline and a place for it."""
    if not run.dry_run or target.clock(run) is None:
        raise ValueError(
            f"trace = {path} needs dry_run = true and a profile with speeds; "
            f"valid: {profiles.with_speeds()}"
        )
    checks.check_file("trace", path)


def _check_save(run: RunConfig, folder: Path) -> None:
    """Raise ValueError unless there will be weights and a place for them."""
    checks.check_method(run, "save")
    if run.dry_run:
        raise ValueError(f"save = {folder} needs weights; valid: dry_run = false")
    checkpoint.saved_config(run)
    if os.environ.get("RANK", "0") != "0":
        return  # the first one writes
    taken = [path for path in (folder, Path(f"{folder}.partial")) if path.exists()]
    if taken:
        raise ValueError(f"save = {folder}: {taken[0]} is there already; valid: a new folder")
    checks.check_file("save", folder)


def _dry_run(run: RunConfig, out: Path, explain: bool, trace: str) -> int:
    started = time.monotonic()
    counted = predict.count(run)
    found = predict.timeline(run, counted)
    outcome = predict.columns(run, counted, found)
    row = launch.finish_row(run, outcome, time.monotonic() - started)
    if explain:
        print(dry_run.explain(counted))
    if trace:
        assert found is not None, "as has been made sure"
        write_trace(found, Path(trace), run)
    return _finish(out, row)


def _finish(out: Path, row: dict[str, Any]) -> int:
    rows.append(out, row)
    if row["status"] != "ok":
        print(f"{row['status']}: {row['error']}", file=sys.stderr)
        return 1
    print(summary(row))
    return 0


def summary(row: dict[str, Any]) -> str:
    """A row in one line."""
    of, time_of, loss = row["hardware"] or row["device"], "", ""
    if row["mode"] == "measured":
        of = row["device"]
    if row.get("step_ms_p50"):
        how = " predicted" if row["mode"] == "dry_run" else ""
        time_of = f"{row['step_ms_p50']:.1f} ms a step{how}, {row['tokens_per_s']:.0f} tokens/s, "
    if row.get("loss_first") is not None:
        loss = f", loss {row['loss_first']:.4f} -> {row['loss_last']:.4f}"
    ring = f" x ring {row['ring_parallel_size']}" if row["ring_parallel_size"] > 1 else ""
    return (
        f"{row['method']}{ring} on {row['world_size']} x {of}, {row['seq_len']} tokens: {time_of}"
        f"{row['comm_bytes_total'] / 2**20:.2f} MiB sent a rank, "
        f"peak {row['peak_memory_bytes'] / 2**20:.1f} MiB{loss}"
    )
