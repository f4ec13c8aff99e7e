"""One rank of a peer's cell: compare it with this project's method, then time and meter it."""

from __future__ import annotations

import gc
from typing import Any

import torch

from bench.runner import rounds, step_log, worker
from bench.runner.compare import checked
from bench.runner.peer import ONLY_NATIVE
from methods.peers import as_method
from methods.peers.checks import name_of
from odysseus.config.run import RunConfig


def measure(run: RunConfig, meters: bool = True) -> dict[str, Any]:
    """Run a peer's cell on this rank. Return the measured columns of its row, the same on every
    rank.

    Call it on every rank of a launched job; it starts and stops the process group.

    Args:
        meters: As of :func:`bench.runner.worker.measure`.
    """
    with worker.process_group(run) as device:
        return measure_in_group(run, device, meters)


def measure_in_group(run: RunConfig, device: torch.device, meters: bool = True) -> dict[str, Any]:
    """Do the same as :func:`measure` in a process group that has already been started."""
    peer, wrong = checked(as_method.matching_run(run), name_of(run.method), device)
    if wrong:
        return {"status": "invalid", "error": wrong}
    gc.collect()  # this project's trainer, whose memory is not the peer's
    if device.type == "cuda":
        torch.cuda.empty_cache()
    losses, times_ms, meanwhile = worker.timed_steps(run, peer.train, peer.samples, device)
    columns = worker.timed_columns(run, times_ms, meanwhile, device)
    columns |= {"loss_first": losses[0].item(), "loss_last": losses[-1].item()}
    columns |= step_log.write(run, [loss.item() for loss in losses], columns[rounds.TIMES])
    if not meters:
        return columns
    memory = peer.memory_of_step
    metered = worker.metered_columns(run, peer.train, memory, peer.samples, device)
    return columns | {name: of for name, of in metered.items() if name not in ONLY_NATIVE}
