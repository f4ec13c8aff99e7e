"""Starting a cell's workers with torch elastic, and turning whatever happens into its row."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bench import cell, host_limit, peer_cell, predict, rows, theory, theory_memory
from methods.peers import name_of
from odysseus.config import RunConfig
from odysseus.host_memory import HostMemoryError

_OUT_OF_MEMORY = {
    "OutOfMemoryError": "oom_gpu",
    "HostMemoryError": "oom_cpu",
    "MemoryError": "oom_cpu",
    "RuntimeError: [enforce fail at alloc_cpu.cpp": "oom_cpu",
}


def measure(run: RunConfig, save: str = "") -> dict[str, Any]:
    """What each worker of a cell does: :func:`bench.cell.measure`, or a peer's."""
    return peer_cell.measure(run) if name_of(run.method) else cell.measure(run, save)


def measure_in_group(run: RunConfig, device: torch.device) -> dict[str, Any]:
    """As :func:`measure`, in a process group that is there already."""
    of = peer_cell if name_of(run.method) else cell
    return of.measure_in_group(run, device)


def run_cell(
    run: RunConfig, measure: Callable[[RunConfig], dict[str, Any]] = measure
) -> dict[str, Any]:
    """Run a checked cell in fresh processes, or count it in this one if it is a dry run; its whole
    row, whatever its status.

    Args:
        measure: What each worker does; a function of a module, to be found by name.

    Raises:
        SystemExit: Ctrl-C or a polite kill, after the workers are gone.
    """
    started = time.monotonic()
    outcome = _count(run) if run.dry_run else run_workers(run, measure)
    return finish_row(run, outcome, time.monotonic() - started)


def run_workers(run: RunConfig, measure: Callable[[RunConfig], dict[str, Any]]) -> dict[str, Any]:
    """What rank 0 has measured, with status and error; those two alone if a rank failed.

    Raises:
        SystemExit: as :func:`run_cell`.
    """
    if short := host_limit.shortage(run):
        return {"status": "oom_cpu", "error": short}
    try:
        with _time_limit(run.timeout_s):
            return {"status": "ok", "error": ""} | _launch(run, measure)
    except ChildFailedError as failed:
        return _failure(failed, run)
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval) from None
    except TimeoutError as timeout:
        return {"status": "timeout", "error": str(timeout)}


def join_cell(run: RunConfig, save: str = "") -> dict[str, Any] | None:
    """Be one of the workers that torchrun or srun started; on rank 0, the cell's row.

    Args:
        save: As :func:`bench.cell.measure`.
    """
    started, is_first = time.monotonic(), os.environ["RANK"] == "0"
    if short := host_limit.shortage(run):
        if not is_first:
            raise HostMemoryError(short)  # so that the launcher ends every rank
        return finish_row(run, {"status": "oom_cpu", "error": short}, 0.0)
    outcome = measured_row(run, lambda: measure(run, save))
    return finish_row(run, outcome, time.monotonic() - started) if is_first else None


def measured_row(run: RunConfig, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a joined rank measures, with status and error; those two alone if rank 0 failed.

    Raises:
        Exception: another rank failed; this ends it, and the launcher the job.
    """
    try:
        return {"status": "ok", "error": ""} | measure()
    except Exception as error:
        if os.environ["RANK"] != "0":
            raise
        return _failed(0, f"{type(error).__name__}: {error}", run)


def invalid_row(run: RunConfig, reason: str) -> dict[str, Any]:
    """The row of a cell that cannot be started."""
    return finish_row(run, {"status": "invalid", "error": reason}, 0.0)


def finish_row(run: RunConfig, outcome: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """A row from a cell's outcome: identity, provenance and, of a method of ours, theory added."""
    row = rows.identity(run) | rows.provenance() | outcome | {"wall_s": round(wall_s, 2)}
    if "comm_bytes_total" in row and not name_of(run.method):
        row |= {
            "theory_comm_bytes_total": theory.step_traffic(run).total,
            "theory_peak_activation_bytes": theory_memory.peak_activation_bytes(run),
            "theory_peak_host_bytes": theory_memory.host_bytes(run),
        }
    return row


def _count(run: RunConfig) -> dict[str, Any]:
    """A dry run's columns."""
    try:
        return predict.columns(run, predict.count(run))
    except Exception as error:
        return {"status": "error", "error": f"{type(error).__name__}: {error}"}


def launched_world_size() -> int | None:
    """The number of processes that torchrun or srun started, this one among them; else None.

    Under srun the environment that torch expects is filled in from Slurm's.
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


def _tasks_on_this_node(tasks: int) -> int:
    """Slurm's list of tasks a node, like ``8(x2),4``, at this node's place."""
    listed = os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(tasks))
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
        counts += [int(count)] * int(times or 1)
    return counts[min(int(os.environ.get("SLURM_NODEID", 0)), len(counts) - 1)]


def _launch(run: RunConfig, measure: Callable[[RunConfig], dict[str, Any]]) -> dict[str, Any]:
    for talkative in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(talkative).setLevel(logging.CRITICAL)
    # Workers fork from a server that has imported everything and runs no thread: milliseconds
    # each, and safe with CUDA. (DTensor's first use imports torch._dynamo: once, in the server.)
    multiprocessing.set_forkserver_preload(["bench.cell", "torch._dynamo"])
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=run.world_size,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"cell-{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="forkserver",
        shutdown_timeout=5,
    )
    return elastic_launch(config, _worker)(measure, run, os.getpid())[0]


@record
def _worker(
    measure: Callable[[RunConfig], dict[str, Any]], run: RunConfig, launcher: int
) -> dict[str, Any]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    _die_with(launcher)
    try:
        return measure(run)
    except Exception as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            # Most likely another rank is gone: let that one be found first.
            time.sleep(2)
        raise


def _die_with(pid: int) -> None:
    """Linux: be killed when that process ends, even if it was killed itself."""
    if sys.platform != "linux":
        return
    launcher = os.pidfd_open(pid)

    def wait() -> None:
        select.select([launcher], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _failure(failed: ChildFailedError, run: RunConfig) -> dict[str, Any]:
    rank, failure = failed.get_first_failure()
    told: Any = failure.message
    message = (told["message"] if isinstance(told, dict) else told).strip().splitlines()[0]
    if failure.exitcode < 0:
        message = f"killed by {signal.Signals(-failure.exitcode).name}"
    return _failed(rank, message, run)


def _failed(rank: int, message: str, run: RunConfig) -> dict[str, Any]:
    status = next((s for sign, s in _OUT_OF_MEMORY.items() if message.startswith(sign)), "error")
    if message.startswith("HostMemoryError"):
        message += f"; {host_limit.longest(run)}"
    return {"status": status, "error": f"rank {rank}: {message}"}


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"stopped after timeout_s = {seconds}")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
