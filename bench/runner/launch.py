"""Run a cell on new processes, and turn every outcome, errors included, into a row."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import provenance, rows
from bench.runner import (
    exhaustion,
    host_limit,
    library_dry_run,
    peer_worker,
    processes,
    rounds,
    worker,
)
from bench.simulator import predict
from bench.theory import memory as theory_memory
from bench.theory import model_sizes
from bench.theory import traffic as theory_traffic
from methods.peers.checks import name_of
from odysseus.config.run import RunConfig


def measure(
    run: RunConfig, save: str = "", memory_trace: str = "", meters: bool = True
) -> dict[str, Any]:
    """Measure a cell on this rank, by :func:`bench.runner.worker.measure` or the peer's worker."""
    if name_of(run.method):
        return peer_worker.measure(run, meters)
    return worker.measure(run, save, memory_trace, meters)


def measure_rounds(run: RunConfig) -> dict[str, Any]:
    """Measure all rounds of a cell on this rank, in one process group."""
    with worker.process_group(run) as device:
        outcomes = [measure_in_group(run, device, meters=not n) for n in range(run.rounds)]
        return rounds.merged(outcomes, run)


def measure_in_group(run: RunConfig, device: torch.device, meters: bool = True) -> dict[str, Any]:
    """Do the same as :func:`measure` in a process group that has already been started."""
    module = peer_worker if name_of(run.method) else worker
    return module.measure_in_group(run, device, meters=meters)


def run_cell(run: RunConfig, measure: Callable[..., dict[str, Any]] = measure) -> dict[str, Any]:
    """Run a checked cell in new processes, once a round, or count it in this process if it is a dry
    run. Return its complete row, whatever its status.

    Args:
        measure: Called in each worker; a module-level function, so that it can be pickled. Later
            rounds pass meters=False.

    Raises:
        SystemExit: after Ctrl-C or SIGTERM, once the workers have ended.
    """
    started = time.monotonic()
    outcomes = [run_round(run, measure)]
    while outcomes[-1]["status"] == "ok" and len(outcomes) < rounds.rounds_of(run):
        outcomes.append(run_round(run, measure, is_first=False))
    return finish_row(run, outcomes, time.monotonic() - started)


def run_round(
    run: RunConfig, measure: Callable[..., dict[str, Any]] = measure, is_first: bool = True
) -> dict[str, Any]:
    """Run one round of a cell as :func:`run_cell` does; return its outcome."""
    if run.dry_run:
        return _count(run)
    return run_workers(run, measure if is_first else partial(measure, meters=False))


def run_workers(run: RunConfig, measure: Callable[[RunConfig], dict[str, Any]]) -> dict[str, Any]:
    """Start the workers. Return rank 0's columns with status and error, or status and error alone
    if a rank failed.

    Raises:
        SystemExit: see :func:`run_cell`.
    """
    if short := host_limit.outcome(run):
        return short
    try:
        outcome = processes.run_ranks(
            measure, run, world_size=run.world_size, timeout_s=run.timeout_s
        )
    except TimeoutError as timeout:
        return {"status": "timeout", "error": str(timeout)}
    except OSError as error:
        return {"status": "error", "error": f"no workers could be started: {error}"}
    if outcome.error:
        return failed_outcome(outcome.rank, outcome.error, run)
    return {"status": "ok", "error": ""} | outcome.result


def invalid_row(run: RunConfig, reason: str) -> dict[str, Any]:
    """The row of a cell that cannot be started."""
    return finish_row(run, [{"status": "invalid", "error": reason}], 0.0)


def finish_row(run: RunConfig, outcomes: list[dict[str, Any]], wall_s: float) -> dict[str, Any]:
    """Return a row from the outcomes of a cell's rounds, with identity, provenance and the theory's
    columns.

    The theory knows this project's own attentions and MLPs. For all others its columns stay empty.
    """
    outcome = rounds.merged(outcomes, run)
    sizes = model_sizes.columns(run) if outcome["status"] != "invalid" else {}
    row = rows.identity(run) | provenance.columns() | sizes | outcome | {"wall_s": round(wall_s, 2)}
    if "comm_bytes_total" in row and any(run.parts):
        row |= {
            "theory_comm_bytes_total": theory_traffic.step_traffic(
                run, int(row.get("rank") or 0)
            ).total,
            "theory_peak_activation_bytes": theory_memory.peak_activation_bytes(run),
            "theory_peak_host_bytes": theory_memory.host_bytes(run),
        }
    return row


def _count(run: RunConfig) -> dict[str, Any]:
    """A dry run's columns."""
    try:
        if library_dry_run.counts(run):
            return library_dry_run.count(run).columns
        return predict.columns(run, predict.count(run))
    except Exception as error:
        return {"status": "error", "error": f"{type(error).__name__}: {error}"}


def failed_outcome(rank: int, message: str, run: RunConfig) -> dict[str, Any]:
    """Status and error of a cell whose first failure was on this rank."""
    status = exhaustion.status_of(message) or "error"
    if message.startswith("HostMemoryError") and host_limit.longest(run) not in message:
        message += f"; {host_limit.longest(run)}"
    return {"status": status, "error": f"rank {rank}: {message}"}
