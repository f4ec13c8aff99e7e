"""Read the environment variables that torchrun and srun set for their processes."""

from __future__ import annotations

import os
import re
from reprlib import repr as shortened

from odysseus.config.environment import whole_number


def launched_world_size() -> int | None:
    """Return the number of processes that torchrun or srun started; None if neither did.

    Under srun, set the environment variables that torch expects, from those of Slurm.

    Raises:
        ValueError: a variable is missing or has no number that fits the others.
    """
    for name, least in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1), ("MASTER_PORT", 0)):
        whole_number(name, least)
    rank, size = whole_number("RANK"), whole_number("WORLD_SIZE", least=1)
    if rank is None or size is None:
        task, size = whole_number("SLURM_PROCID"), whole_number("SLURM_STEP_NUM_TASKS", least=1)
        if task is None or size is None or size == 1:
            return None
        rank = _set_from_slurm(task, size)
    if rank >= size:
        raise ValueError(
            f"environment variable RANK is {rank}; valid with WORLD_SIZE = {size}: 0 to {size - 1}"
        )
    return size


def _set_from_slurm(task: int, tasks: int) -> int:
    """Set the variables that torch expects; return the rank."""
    env = os.environ
    port = 20_000 + _needed("SLURM_JOB_ID") % 20_000
    env.setdefault("RANK", str(task))
    env.setdefault("LOCAL_RANK", str(_needed("SLURM_LOCALID")))
    env.setdefault("WORLD_SIZE", str(tasks))
    env.setdefault("LOCAL_WORLD_SIZE", str(_tasks_on_this_node(tasks)))
    env.setdefault("MASTER_ADDR", env.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
    env.setdefault("MASTER_PORT", str(port))
    return _needed("RANK")


def _needed(name: str) -> int:
    """Return the number in a variable that the launcher sets together with the others."""
    number = whole_number(name)
    if number is None:
        raise ValueError(
            f"environment variable {name} is missing, but others of the same launcher are there; "
            "valid: all that torchrun or srun sets, or none"
        )
    return number


def own_rank() -> int:
    """Return this process's rank; 0 unless torchrun or srun started several processes."""
    return whole_number("RANK") or 0 if launched_world_size() else 0


def is_first_rank() -> bool:
    """Return whether this process is the one that prints and writes files."""
    return own_rank() == 0


def _tasks_on_this_node(tasks: int) -> int:
    """Return this node's number of tasks, from Slurm's list per node, like ``8(x2),4``; the last
    one's if there are more nodes."""
    listed = os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(tasks))
    node = whole_number("SLURM_NODEID") or 0
    counts = re.findall(r"([1-9]\d{0,5})(?:\(x([1-9]\d{0,5})\))?(?:,|$)", listed)
    if not counts or not re.fullmatch(r"(\d+(\(x\d+\))?(,|$))+", listed):
        raise ValueError(
            f"environment variable SLURM_STEP_TASKS_PER_NODE is {shortened(listed)}; valid: the "
            "number of tasks of each node, like 8(x2),4"
        )
    for count, times in counts:
        node -= int(times or 1)
        if node < 0:
            return int(count)
    return int(counts[-1][0])
