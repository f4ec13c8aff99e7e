"""``python -m bench run``: measure or predict one cell, and append its row."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import rows
from bench.commands.summary import summary
from bench.config import checks, grid
from bench.config.launched import is_first_rank, launched_world_size
from bench.hardware import profiles
from bench.meters import memory_trace
from bench.runner import join, launch, library_dry_run
from bench.runner.advice import advice
from bench.simulator import predict, target
from bench.simulator.peak import peak_in_words
from bench.simulator.placement import placement
from bench.simulator.trace import check_writable as check_trace
from bench.simulator.trace import write_trace
from odysseus.config.advice import size_advice
from odysseus.config.run import RunConfig
from odysseus.io import checkpoint, files
from odysseus.memory.host_memory import ranks_per_node
from odysseus.parallel.mesh import pick_device

Measure = Callable[[RunConfig], dict[str, Any]]
"""Returns the measured columns of a run; called on every rank."""


def main(parsed: Any) -> int:
    """Measure or predict one cell and append its row; return 0 if its status is ok, else 1.

    Raises:
        ValueError: the cell cannot be started.
    """
    run, launched = grid.run_config(parsed, peers=True), launched_world_size()
    out = Path(parsed.out)
    checks.check(run)
    checks.check_gpus(run, launched)
    if is_first_rank():
        rows.check_writable(out)
    if parsed.trace:
        _check_trace(run, Path(parsed.trace))
    if parsed.memory_trace:
        _check_memory_trace(run, Path(parsed.memory_trace))
    if parsed.save:
        _check_save(run, Path(parsed.save))
    if run.dry_run:
        return _dry_run(run, out, parsed)
    _print_placement(run)
    measure = partial(launch.measure, save=parsed.save, memory_trace=parsed.memory_trace)
    if launched is None:
        return _start_workers(run, out, measure)
    return _join_workers(run, out, measure)


def _check_trace(run: RunConfig, path: Path) -> None:
    """Raise ValueError unless the run has a predicted timeline and its file can be written."""
    if not run.dry_run or target.clock(run) is None:
        raise ValueError(
            f"trace = {path} needs dry_run = true and a profile with speeds; "
            f"valid: {profiles.with_speeds()}"
        )
    check_trace(path)


def _check_memory_trace(run: RunConfig, path: Path) -> None:
    """Raise ValueError unless the kinds of the run's tensors are known and the file can be
    written."""
    checks.check_method(run, "memory_trace")
    if run.rounds > 1 and not run.dry_run:
        raise ValueError(
            f"memory_trace = {path} is not for rounds = {run.rounds}, each of which has a step of "
            "its own; valid: 1"
        )
    if is_first_rank():  # only the first rank writes
        memory_trace.check_writable(path)


def _check_save(run: RunConfig, folder: Path) -> None:
    """Raise ValueError unless the run has weights and they can be written to a new folder."""
    checks.check_method(run, "save")
    if run.dry_run:
        raise ValueError(f"save = {folder} needs weights; valid: dry_run = false")
    if run.rounds > 1:
        raise ValueError(
            f"save = {folder} is not for rounds = {run.rounds}, each of which trains; valid: 1"
        )
    checkpoint.saved_config(run)
    if not is_first_rank():
        return  # only the first rank writes
    taken = [path for path in (folder, Path(f"{folder}.partial")) if path.exists()]
    if taken:
        raise ValueError(f"save = {folder}: {taken[0]} exists already; valid: a new folder")
    files.check_output("save", folder, "a new folder")


def _dry_run(run: RunConfig, out: Path, parsed: Any) -> int:
    """Count and predict one rank's step, write what else was asked for, append the row and return
    the exit status."""
    started = time.monotonic()
    for line in size_advice(run):
        print(f"advice: {line}", file=sys.stderr)
    if library_dry_run.counts(run):
        try:
            counted = library_dry_run.count(run)
        except library_dry_run.LibraryError as error:
            failed = {"status": "error", "error": str(error)}
            return _finish(out, launch.finish_row(run, [failed], time.monotonic() - started))
        timeline, outcome = counted.timeline, counted.columns
    else:
        counted = predict.count(run)
        timeline = predict.timeline(run, counted)
        outcome = predict.columns(run, counted, timeline)
    row = launch.finish_row(run, [outcome], time.monotonic() - started)
    if parsed.explain_peak:
        print(peak_in_words(counted.rank, counted.peak))
    if parsed.trace:
        assert timeline is not None, "checked before the start"
        write_trace(timeline, Path(parsed.trace), run)
    if parsed.memory_trace:
        memory_trace.write(counted.course, Path(parsed.memory_trace), rows.identity(run))
    return _finish(out, row)


def _print_placement(run: RunConfig) -> None:
    """Print which axes cross nodes, where there are a ring, a tensor axis or several nodes."""
    local = ranks_per_node(run.world_size)
    several = run.ring_parallel_size > 1 or run.tensor_parallel_size > 1
    if is_first_rank() and (several or local < run.world_size):
        print(f"placement: {placement(run, local)}", file=sys.stderr)


def _start_workers(run: RunConfig, out: Path, measure: Measure) -> int:
    """Measure the cell with workers started here; return the exit status."""
    for line in advice(run, pick_device(run.device)):
        print(f"advice: {line}", file=sys.stderr)
    return _finish(out, launch.run_cell(run, measure))


def _join_workers(run: RunConfig, out: Path, measure: Measure) -> int:
    """Measure the cell as one of the workers that torchrun or srun started.

    Return the exit status, which is 0 on all ranks but the first.
    """
    each = launch.measure_rounds if run.rounds > 1 else measure
    status = join.run_cell(run, partial(each, run), partial(_finish, out))
    return 1 if status != "ok" and is_first_rank() else 0


def _finish(out: Path, row: dict[str, Any]) -> int:
    """Append a row, print it, and return the exit status."""
    rows.append(out, row)
    if row["status"] != "ok":
        print(f"{row['status']}: {row['error']}", file=sys.stderr)
        return 1
    print(summary(row))
    return 0
