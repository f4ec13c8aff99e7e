"""``python -m bench sweep``: a grid of cells, resumable."""

from __future__ import annotations

import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from bench import rows
from bench.config import checks, grid
from bench.config.launched import is_first_rank, launched_world_size
from bench.report.live_page import LivePage
from bench.runner import claims, host_limit, join, launch, worker
from odysseus.config.run import RunConfig

_SAME_PER_JOB = ("device", "timeout_s", "expandable_segments", "offloads", "optimizer_on_host")
"""Options with which a process group and its allocator are started."""

_CLAIMED = "claimed"
"""Status of a cell that another sweep on the same file measures."""


def main(parsed: Any) -> int:
    """Measure every cell of a grid that has no row yet; return 0 if these are all ok, else 1.

    Raises:
        ValueError: a value is not valid in any cell.
    """
    out = Path(parsed.out)
    cells, launched = grid.expand(parsed, peers=True), launched_world_size()
    rows.check_writable(out)
    known = rows.keys(out, only_ok=parsed.retry_failed)
    had = len(rows.read(out))
    live = LivePage(out, parsed.watch, len(cells))
    if launched is not None:
        return _join_workers(cells, launched, known, out, live)
    failed = done = 0
    with _progress(len(cells)) as progress:
        live.write(0)
        left = deque((run, False) for run in cells)
        while left:
            run, wait = left.popleft()
            progress.set_description(f"{run.method} n={run.world_size} L={run.seq_len}")
            status = _measure_if_new(run, known, out, had, wait)
            if status == _CLAIMED:
                left.append((run, True))  # in case that the other sweep ends without its row
                continue
            done += status is not None
            failed += status not in (None, "ok")
            _advance(progress, was_known=status is None)
            if status is not None:
                live.write(len(cells) - len(left))
    live.write(len(cells), ended=True)
    print(f"{len(cells)} cells: {len(cells) - done} had rows, {done - failed} ok, {failed} failed")
    return 1 if failed else 0


def _progress(cells: int) -> tqdm[Any]:
    """Return a bar with the current cell and the time left; hidden without a terminal."""
    return tqdm(total=cells, unit="cell", smoothing=0, file=sys.stderr, disable=None)


def _advance(progress: tqdm[Any], was_known: bool) -> None:
    """Advance the bar by one cell. A cell whose row was known does not count for the time left."""
    if was_known and not progress.disable:
        progress.initial += 1
    progress.update()


def _measure_if_new(
    run: RunConfig, known: set[tuple[str, ...]], out: Path, had: int, wait: bool
) -> str | None:
    """Measure a cell unless it has a row; return its status, or None if it has one.

    Args:
        known: Keys of the cells that had rows when the sweep started.
        had: Number of rows of the file then.
        wait: Whether to wait for another sweep that measures the cell, or return _CLAIMED.
    """
    try:
        checks.check(run)
        checks.check_gpus(run, None)
    except ValueError as error:
        row = launch.invalid_row(run, str(error))
    else:
        row = None
    cell = rows.key(row or rows.identity(run))
    if cell in known:
        return None
    with claims.claimed(out, cell, wait) as is_ours:
        if not is_ours:
            return _CLAIMED
        if cell in _keys_since(out, had):
            return None
        row = row or launch.run_cell(run)
        rows.append(out, row)
    if row["status"] != "ok":
        tqdm.write(f"{row['status']}: {run.method}: {row['error']}", file=sys.stderr)
    return row["status"]


def _keys_since(out: Path, had: int) -> set[tuple[str, ...]]:
    """The keys of the rows that this and other sweeps have added since the start.

    Raises:
        OSError: the file is no longer one of rows, so that nothing can be added.
    """
    try:
        rows.check_writable(out)
        return rows.keys(out, after=had)
    except ValueError as error:
        raise OSError(str(error)) from None


def _join_workers(
    cells: list[RunConfig],
    launched: int,
    known: set[tuple[str, ...]],
    out: Path,
    live: LivePage,
) -> int:
    """Measure all cells, one after another, as one of the workers that torchrun or srun started.

    A cell that fails ends the job. Started again, the sweep continues with the next cell.

    Raises:
        ValueError: a cell does not fit the launched ranks, or cells cannot share one job.
    """
    for run in cells:
        checks.check_gpus(run, launched)
    for name in _SAME_PER_JOB:
        if len({getattr(run, name) for run in cells}) > 1:
            raise ValueError(
                f"{name} differs between cells that join one job; valid: one value, or a sweep "
                "that starts its own workers"
            )
    if not cells:
        return 0
    failed = 0
    with worker.process_group(cells[0]) as device:
        keys = {rows.key(rows.identity(run)): run for run in cells}
        left = [[run for key, run in keys.items() if key not in known]]
        dist.broadcast_object_list(left, src=0)  # the first rank's file decides what is left
        for number, run in enumerate(left[0], 1 + len(keys) - len(left[0])):
            finish = partial(_append, out, run, time.monotonic())
            if refused := _refused_on_any_rank(run):
                status = refused["status"]
                if is_first_rank():
                    finish(refused)
            else:
                measure = partial(launch.measure_in_group, run, device)
                status = join.measured(run, measure, finish)
            if is_first_rank():
                live.write(number, ended=number == len(keys))
            failed += status != "ok"
            if status not in ("ok", "invalid") and not refused:
                break  # other ranks may have ended
    # A rank that exits with 1 before the first rank has finished would end the first rank too.
    return 1 if failed and is_first_rank() else 0


def _append(out: Path, run: RunConfig, started: float, outcome: dict[str, Any]) -> None:
    """Append a joined cell's row and print its status."""
    rows.append(out, launch.finish_row(run, outcome, time.monotonic() - started))
    print(f"{run.method} n={run.world_size} L={run.seq_len}: {outcome['status']}")


def _refused_on_any_rank(run: RunConfig) -> dict[str, Any]:
    """Return status and error of a cell that some rank cannot start; empty if all ranks can.

    Ranks differ where only some hosts have a file, or a host has too little memory. The lowest rank
    that refuses decides. A collective.
    """
    own = {"status": "invalid", "error": checks.refusal(run)}
    if not own["error"]:
        own = {"status": "oom_cpu", "error": host_limit.shortage(run)}
    reported = [own] * dist.get_world_size()
    dist.all_gather_object(reported, own)
    return next((outcome for outcome in reported if outcome["error"]), {})
