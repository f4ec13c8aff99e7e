"""``python -m bench sweep``: a grid of cells, resumable."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from bench import rows
from bench.config import checks, options
from bench.config.launched import launched_world_size
from bench.report.live_page import LivePage
from bench.runner import host_limit, join, launch, worker
from odysseus.config.run import RunConfig

_OF_A_JOB = ("device", "timeout_s", "expandable_segments", "offloads", "optimizer_on_host")
"""What a process group and its allocator are started with."""


def main(arguments: list[str]) -> int:
    """Measure every cell of a grid that has no row yet; 0 when all of those are ok, else 1.

    Raises:
        ValueError: a key or a value is none that any cell could have.
    """
    parser = options.parser(
        "sweep", "Measure a grid of cells. Any key may hold a list, in YAML or as --key '[a, b]'."
    )
    options.add_grid_options(parser)
    parser.add_argument("--out", type=str, default="results/sweep.csv", help="CSV file of rows.")
    parser.add_argument(
        "--retry_failed", type=bool, default=False, help="Run cells again whose row is not ok."
    )
    parser.add_argument(
        "--watch",
        type=str,
        default="",
        help="Folder for report.html, the report's page of the rows so far: written as each lands, "
        "and read again by the browser that shows it.",
    )
    parsed = options.parse(parser, arguments)
    out = Path(parsed.out)
    cells, launched = options.expand(parsed, peers=True), launched_world_size()
    rows.check_writable(out)
    known = rows.keys(out, only_ok=parsed.retry_failed)
    live = LivePage(out, parsed.watch, len(cells))
    if launched is not None:
        return _join(cells, launched, known, out, live)
    failed = done = 0
    with _progress(len(cells)) as progress:
        live.write(0)
        for number, run in enumerate(cells, 1):
            progress.set_description(f"{run.method} n={run.world_size} L={run.seq_len}")
            status = _one(run, known, out)
            done += status is not None
            failed += status not in (None, "ok")
            _advance(progress, was_there=status is None)
            if status is not None:
                live.write(number)
    live.write(len(cells), ended=True)
    print(f"{len(cells)} cells: {len(cells) - done} had rows, {done - failed} ok, {failed} failed")
    return 1 if failed else 0


def _progress(cells: int) -> tqdm[Any]:
    """A bar with the current cell and the time left, where there is a terminal."""
    return tqdm(total=cells, unit="cell", smoothing=0, file=sys.stderr, disable=None)


def _advance(progress: tqdm[Any], was_there: bool) -> None:
    """Go on by a cell. One that had its row took no time, so it says nothing of the time left."""
    if was_there and not progress.disable:
        progress.initial += 1
    progress.update()


def _join(
    cells: list[RunConfig],
    launched: int,
    known: set[tuple[str, ...]],
    out: Path,
    live: LivePage,
) -> int:
    """Be one of the workers that torchrun or srun started, for all cells one after another.

    A cell that fails ends the job: started again, it goes on with the next.

    Raises:
        ValueError: a cell cannot run on so many ranks.
    """
    for run in cells:
        checks.check_gpus(run, launched)
    for name in _OF_A_JOB:
        if len({getattr(run, name) for run in cells}) > 1:
            raise ValueError(
                f"{name} differs between cells that join one job; valid: one value, or a sweep "
                "that starts its own workers"
            )
    if not cells:
        return 0
    is_first, failed = os.environ["RANK"] == "0", 0
    with worker.process_group(cells[0]) as device:
        # Whose file it is says what is left.
        keys = {rows.key(rows.identity(run)): run for run in cells}
        left = [[run for key, run in keys.items() if key not in known]]
        dist.broadcast_object_list(left, src=0)
        for number, run in enumerate(left[0], 1 + len(keys) - len(left[0])):
            finish = partial(_append, out, run, time.monotonic())
            if told := _told_anywhere(run):
                status = told["status"]
                if is_first:
                    finish(told)
            else:
                measure = partial(launch.measure_in_group, run, device)
                status = join.measured(run, measure, finish)
            if is_first:
                live.write(number, ended=number == len(keys))
            failed += status != "ok"
            if status not in ("ok", "invalid") and not told:
                break  # other ranks may have ended
    return 1 if failed and is_first else 0  # who ends badly before the first one ends it too


def _append(out: Path, run: RunConfig, started: float, outcome: dict[str, Any]) -> None:
    """Add a joined cell's row, and say so."""
    rows.append(out, launch.finish_row(run, outcome, time.monotonic() - started))
    print(f"{run.method} n={run.world_size} L={run.seq_len}: {outcome['status']}")


def _told_anywhere(run: RunConfig) -> dict[str, Any]:
    """Status and error of a cell that cannot be started, from the first rank that says so: a file
    may be on some hosts only, or a host too small. Empty if it can."""
    mine = {"status": "invalid", "error": checks.refusal(run)}
    if not mine["error"]:
        mine = {"status": "oom_cpu", "error": host_limit.shortage(run)}
    told = [mine] * dist.get_world_size()
    dist.all_gather_object(told, mine)
    return next((outcome for outcome in told if outcome["error"]), {})


def _one(run: RunConfig, known: set[tuple[str, ...]], out: Path) -> str | None:
    """Measure a cell unless its row is there; the status of a new row."""
    try:
        checks.check(run)
        checks.check_gpus(run, None)
    except ValueError as error:
        row = launch.invalid_row(run, str(error))
    else:
        row = None
    if rows.key(row or rows.identity(run)) in known:
        return None
    row = row or launch.run_cell(run)
    rows.append(out, row)
    if row["status"] == "ok":
        known.add(rows.key(row))  # two cells of a grid may mean the same
    else:
        tqdm.write(f"{row['status']}: {run.method}: {row['error']}", file=sys.stderr)
    return row["status"]
