"""``python -m bench calibrate``: measure the profile of this machine or cluster."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from bench.calibration import calibrate
from bench.config import checks, grid
from bench.config.launched import is_first_rank, launched_world_size
from bench.hardware import profile_file
from bench.hardware.speeds import Link
from bench.runner import launch, worker
from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import ranks_per_node
from odysseus.parallel.mesh import pick_device


def main(parsed: Any) -> int:
    """Measure and write a file for ``--hardware``; return 0 if it was written, else 1.

    Raises:
        ValueError: the ranks cannot be started, or the file cannot be written.
    """
    run, launched = grid.run_config(parsed), launched_world_size()
    checks.check(run)
    checks.check_gpus(run, launched)
    if pick_device(run.device).type == "cuda" and run.dtype != "bf16":
        raise ValueError(f"dtype = {run.dtype} has no flash attention on CUDA; valid: bf16")
    if run.dry_run:
        raise ValueError("dry_run = true has nothing to measure; valid: false")
    out = Path(parsed.out)
    profile_file.check_name(out)
    if is_first_rank():
        profile_file.check_writable(out)
    measured = partial(_profile, links=_links_of(parsed.links_of, run))
    outcome = measured(run) if launched else launch.run_workers(run, measured)
    if outcome["status"] != "ok":
        print(f"{outcome['status']}: {outcome['error']}", file=sys.stderr)
        return 1
    if is_first_rank():
        profile_file.write(outcome["profile"], out)
        print(f"{out}: {run.world_size} ranks, {len(outcome['profile'].speeds.links)} links")
    return 0


def _links_of(name: str, run: RunConfig) -> tuple[Link, ...]:
    """Return the links of an earlier profile of these ranks; none without a name.

    Raises:
        ValueError: the profile is of other ranks, or has no links, or its link times include skew.
    """
    if not name:
        return ()
    earlier, local = profile_file.find(name, "links_of"), ranks_per_node(run.world_size)
    device = pick_device(run.device).type
    links = earlier.speeds.links if earlier.speeds else ()
    most = max((link.ranks for link in links), default=0)
    if (most, earlier.gpus_per_node, earlier.device) != (run.world_size, local, device):
        raise ValueError(
            f"links_of = {name} has links of {most} ranks, {earlier.gpus_per_node} per node, on "
            f"{earlier.device}; valid: a file that calibrate wrote for {run.world_size}, {local} "
            f"per node, on {device}"
        )
    if device == "cpu" and run.world_size > 1 and not (earlier.speeds and earlier.speeds.skew):
        raise ValueError(
            f"links_of = {name} has links whose times include skew, and no skew; valid: a file "
            "that calibrate wrote with skew"
        )
    return links


def _profile(run: RunConfig, links: tuple[Link, ...]) -> dict[str, Any]:
    """Measure on this rank; return status, error and profile."""
    with worker.process_group(run) as device:
        return {"status": "ok", "error": "", "profile": calibrate.measure(run, device, links)}
