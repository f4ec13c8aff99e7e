"""Start a cell's workers with torch elastic, and turn every outcome, errors included, into a
row."""

from __future__ import annotations

import logging
import multiprocessing
import os
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

from bench import rows
from bench.runner import host_limit, peer_worker, worker
from bench.simulator import predict
from bench.theory import memory as theory_memory
from bench.theory import traffic as theory_traffic
from methods import METHODS
from methods.peers.checks import name_of
from odysseus.config.run import RunConfig

PRELOADED = (__name__, "torch._dynamo")
"""Modules that are already imported when a worker starts. This one imports all others that a worker
needs; DTensor imports torch._dynamo when it is first used."""
_OUT_OF_MEMORY = {
    "OutOfMemoryError": "oom_gpu",
    "HostMemoryError": "oom_cpu",
    "MemoryError": "oom_cpu",
    "RuntimeError: [enforce fail at alloc_cpu.cpp": "oom_cpu",
}


def measure(run: RunConfig, save: str = "") -> dict[str, Any]:
    """Measure a cell on this rank, by :func:`bench.runner.worker.measure` or the peer's worker."""
    return peer_worker.measure(run) if name_of(run.method) else worker.measure(run, save)


def measure_in_group(run: RunConfig, device: torch.device) -> dict[str, Any]:
    """Do the same as :func:`measure` in a process group that has already been started."""
    module = peer_worker if name_of(run.method) else worker
    return module.measure_in_group(run, device)


def run_cell(
    run: RunConfig, measure: Callable[[RunConfig], dict[str, Any]] = measure
) -> dict[str, Any]:
    """Run a checked cell in new processes, or count it in this process if it is a dry run. Return
    its complete row, whatever its status.

    Args:
        measure: Called in each worker; a module-level function, so that it can be pickled.

    Raises:
        SystemExit: after Ctrl-C or SIGTERM, once the workers have ended.
    """
    started = time.monotonic()
    outcome = _count(run) if run.dry_run else run_workers(run, measure)
    return finish_row(run, outcome, time.monotonic() - started)


def run_workers(run: RunConfig, measure: Callable[[RunConfig], dict[str, Any]]) -> dict[str, Any]:
    """Start the workers. Return rank 0's columns with status and error, or status and error alone
    if a rank failed.

    Raises:
        SystemExit: see :func:`run_cell`.
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


def invalid_row(run: RunConfig, reason: str) -> dict[str, Any]:
    """The row of a cell that cannot be started."""
    return finish_row(run, {"status": "invalid", "error": reason}, 0.0)


def finish_row(run: RunConfig, outcome: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """Return a row from a cell's outcome, with identity, provenance and the theory's columns.

    The theory knows this project's own methods. For all others its columns stay empty.
    """
    row = rows.identity(run) | rows.provenance() | outcome | {"wall_s": round(wall_s, 2)}
    if "comm_bytes_total" in row and run.method in METHODS:
        row |= {
            "theory_comm_bytes_total": theory_traffic.step_traffic(run).total,
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


def _launch(run: RunConfig, measure: Callable[[RunConfig], dict[str, Any]]) -> dict[str, Any]:
    for logger in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    # Workers fork from a server that has imported everything and runs no thread: each start takes
    # milliseconds and is safe with CUDA.
    multiprocessing.set_forkserver_preload([*PRELOADED])
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The launcher handles Ctrl-C.
    _die_with(launcher)
    try:
        return measure(run)
    except Exception as error:
        if follows_another(error):
            time.sleep(2)  # so that the launcher sees the other rank's failure first
        raise


def follows_another(error: Exception) -> bool:
    """Whether this error most likely follows from the end of another rank."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _die_with(pid: int) -> None:
    """Kill this process when the process `pid` ends, even if that process is killed (Linux
    only)."""
    if sys.platform != "linux":
        return
    launcher = os.pidfd_open(pid)

    def wait() -> None:
        select.select([launcher], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _failure(failed: ChildFailedError, run: RunConfig) -> dict[str, Any]:
    rank, failure = failed.get_first_failure()
    reported: Any = failure.message
    text = reported["message"] if isinstance(reported, dict) else reported
    message = text.strip().splitlines()[0]
    if failure.exitcode < 0:
        message = f"killed by {signal.Signals(-failure.exitcode).name}"
    return failed_outcome(rank, message, run)


def failed_outcome(rank: int, message: str, run: RunConfig) -> dict[str, Any]:
    """Status and error of a cell whose first failure was on this rank."""
    status = next((s for sign, s in _OUT_OF_MEMORY.items() if message.startswith(sign)), "error")
    if message.startswith("HostMemoryError") and host_limit.longest(run) not in message:
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
