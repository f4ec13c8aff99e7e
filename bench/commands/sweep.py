"""``python -m bench sweep``: a grid of cells, resumable."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from bench import rows
from bench.config import checks, grid
from bench.config.launched import is_first_rank, launched_world_size
from bench.report.live_page import LivePage
from bench.runner import claims, host_limit, join, launch, rounds, signals, worker
from bench.runner.claims import Key
from bench.runner.resume import Resumed, key_of
from bench.runner.rounds import rounds_of
from bench.runner.unfinished import Unfinished
from odysseus.config.advice import size_advice
from odysseus.config.run import RunConfig

_SAME_PER_JOB = ("device", "timeout_s", "expandable_segments", "numa_binding")
_SAME_PER_JOB += ("offloads", "optimizer_on_host")
"""Options with which a process group and its allocator are started."""

_HAD = "had"
"""Status of a cell that has a row."""
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
    resumed = Resumed(out, parsed.retry_failed)
    live = LivePage(out, parsed.watch, len(cells))
    if is_first_rank() and (again := sum(map(resumed.has_less, cells))):
        print(f"{again} cells are measured again, with more rounds or steps", file=sys.stderr)
    for line in dict.fromkeys(line for run in cells for line in _size_advice(run)):
        print(f"advice: {line}", file=sys.stderr)
    with signals.before_end(live.stopped):
        if launched is not None:
            return _join_workers(cells, launched, resumed, live)
        return _start_workers(cells, resumed, live)


def _start_workers(cells: list[RunConfig], resumed: Resumed, live: LivePage) -> int:
    """Measure each cell with workers started here; return the exit status."""
    statuses: list[str] = []
    with _progress(sum(map(rounds_of, cells))) as progress:
        left = deque((group, False) for group in rounds.alternating(cells))
        live.write(0, _limit_s(group for group, _ in left))
        while left:
            group, wait = left.popleft()
            of_group = _measure_if_new(group, resumed, wait, progress)
            claimed = [r for r, status in zip(group, of_group, strict=True) if status == _CLAIMED]
            left += (([run], True) for run in claimed)  # in case that the other sweep ends first
            statuses += (status for status in of_group if status != _CLAIMED)
            if left and set(of_group) - {_HAD, _CLAIMED}:
                live.write(len(statuses), _limit_s(group for group, _ in left))
    live.write(len(cells))
    had, ok = (statuses.count(status) for status in (_HAD, "ok"))
    failed = len(statuses) - had - ok
    print(f"{len(cells)} cells: {had} had rows, {ok} ok, {failed} failed")
    return 1 if failed else 0


def _size_advice(run: RunConfig) -> list[str]:
    """Return advice on the model's sizes; none if they do not fit together, which the row says."""
    try:
        return size_advice(run)
    except ValueError:
        return []


def _limit_s(groups: Iterable[list[RunConfig]]) -> int:
    """Seconds after which the next of these groups has rows at the latest; 0 without groups."""
    limits = (sum(rounds_of(run) * run.timeout_s for run in group) for group in groups)
    return max(limits, default=0)


def _progress(total: int) -> tqdm[Any]:
    """Return a bar with the current cell and the time left; hidden without a terminal."""
    return tqdm(total=total, unit="round", smoothing=0, file=sys.stderr, disable=None)


def _measure_if_new(
    group: list[RunConfig], resumed: Resumed, wait: bool, progress: tqdm[Any]
) -> list[str]:
    """Measure the cells of a group that have no row, in turn; return the status of each cell.

    Args:
        wait: Whether to wait for another sweep that measures a cell; else it is _CLAIMED.
    """
    new = [key_of(run) for run in group if not resumed.has(run)]
    with claims.claimed(resumed.out, new, wait) as own:
        measured: dict[Key, Unfinished] = {}
        statuses: list[str] = []
        for run in group:
            key = key_of(run)
            if key not in new or key in measured or (key in own and resumed.has_now(run)):
                statuses.append(_HAD)
                _skip(progress, rounds_of(run))
            elif key not in own:
                statuses.append(_CLAIMED)
            else:
                measured[key] = Unfinished(run, resumed.out)
                statuses.append("")
        for _ in range(rounds_of(group[0])):
            for cell in measured.values():
                _measure_round(cell, progress)
        done = (cell.status for cell in measured.values())
        return [status or next(done) for status in statuses]


def _skip(progress: tqdm[Any], rounds_left: int) -> None:
    """Advance the bar by rounds that are not measured, and do not count for the time left."""
    if not progress.disable:
        progress.initial += rounds_left
    progress.update(rounds_left)


def _measure_round(cell: Unfinished, progress: tqdm[Any]) -> None:
    """Measure the next round of a cell, unless it has failed."""
    if cell.status:
        return _skip(progress, 1)
    run, started = cell.run, time.monotonic()
    progress.set_description(f"{run.method} n={run.world_size} L={run.seq_len}")
    try:
        checks.check(run)
        checks.check_gpus(run, None)
    except ValueError as error:
        outcome = {"status": "invalid", "error": str(error)}
    else:
        outcome = launch.run_round(run, is_first=not cell.begun)
    cell.add(outcome, started)
    if outcome["status"] != "ok":
        tqdm.write(f"{outcome['status']}: {run.method}: {outcome['error']}", file=sys.stderr)
    progress.update()


def _join_workers(cells: list[RunConfig], launched: int, resumed: Resumed, live: LivePage) -> int:
    """Measure all cells, in turn, as one of the workers that torchrun or srun started.

    A cell that fails ends the job. Started again, the sweep continues with the next cell.

    Raises:
        ValueError: a cell does not fit the launched ranks, or cells cannot share one job.
        SystemExit: a cell failed; this rank leaves its process group as it is.
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
        by_key = {key_of(run): run for run in cells}
        left = [[run for run in by_key.values() if not resumed.has(run)]]
        dist.broadcast_object_list(left, src=0)  # the first rank's file decides what is left
        number = len(by_key) - len(left[0])
        groups = [*rounds.alternating(left[0])]
        for done, group in enumerate(groups, 1):
            unfinished = [Unfinished(run, resumed.out, is_first_rank()) for run in group]
            turns = [cell for _ in range(rounds_of(group[0])) for cell in unfinished]
            lost = any(_join_round(cell, device) for cell in turns)
            number += sum(cell.status != "" for cell in unfinished)
            failed += sum(cell.status not in ("ok", "") for cell in unfinished)
            if is_first_rank():
                live.write(number, _limit_s(groups[done:]))
            if lost:
                live.stopped()
                raise SystemExit(1)  # the end of the group would wait for ranks that hang
    # A rank that exits with 1 before the first rank has finished would end the first rank too.
    return 1 if failed and is_first_rank() else 0


def _join_round(cell: Unfinished, device: torch.device) -> bool:
    """Measure the next round of a joined cell, unless it has failed. Return whether other ranks may
    have ended."""
    if cell.status:
        return False
    run, started = cell.run, time.monotonic()
    refused = _refused_on_any_rank(run)
    if refused:
        cell.add(refused, started)
    else:
        measure = partial(launch.measure_in_group, run, device, meters=not cell.begun)
        status = join.measured(run, measure, partial(cell.add, started=started))
        if not is_first_rank():
            cell.add({"status": status}, started)
    if cell.status and is_first_rank():
        print(f"{run.method} n={run.world_size} L={run.seq_len}: {cell.status}")
    return not refused and cell.status not in ("", "ok", "invalid")


def _refused_on_any_rank(run: RunConfig) -> dict[str, Any]:
    """Return status and error of a cell that some rank cannot start; empty if all ranks can.

    Ranks differ where only some hosts have a file, or a host has too little memory. The lowest rank
    that refuses decides. A collective.
    """
    refusal = checks.refusal(run)
    own = {"status": "invalid", "error": refusal} if refusal else host_limit.outcome(run)
    reported = [own] * dist.get_world_size()
    dist.all_gather_object(reported, own)
    return next(filter(None, reported), {})
