"""Read the environment variables that torchrun and srun set for their processes."""

from __future__ import annotations

import os
import re


def launched_world_size() -> int | None:
    """Return the number of processes that torchrun or srun started; None if neither did.

    Under srun, set the environment variables that torch expects, from those of Slurm.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["WORLD_SIZE"])
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", 1))
    if "SLURM_PROCID" not in env or tasks == 1:
        return None
    port = 20_000 + int(env["SLURM_JOB_ID"]) % 20_000
    env.setdefault("RANK", env["SLURM_PROCID"])
    env.setdefault("LOCAL_RANK", env["SLURM_LOCALID"])
    env.setdefault("WORLD_SIZE", str(tasks))
    env.setdefault("LOCAL_WORLD_SIZE", str(_tasks_on_this_node(tasks)))
    env.setdefault("MASTER_ADDR", env.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
    env.setdefault("MASTER_PORT", str(port))
    return tasks


def own_rank() -> int:
    """Return this process's rank; 0 unless torchrun or srun started several processes."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def is_first_rank() -> bool:
    """Return whether this process is the one that prints and writes files."""
    return own_rank() == 0


def _tasks_on_this_node(tasks: int) -> int:
    """Return this node's number of tasks, from Slurm's list per node, like ``8(x2),4``."""
    listed = os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(tasks))
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
        counts += [int(count)] * int(times or 1)
    return counts[min(int(os.environ.get("SLURM_NODEID", 0)), len(counts) - 1)]
