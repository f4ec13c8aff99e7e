"""What one rank of a peer's cell does: hold it against ours, then time and meter it as ours are."""

from __future__ import annotations

import gc
from typing import Any

import torch
import torch.distributed as dist

from bench.meters.memory import KINDS
from bench.meters.traffic import PURPOSES
from bench.runner import worker
from bench.runner.compare import checked
from methods.peers import as_method
from methods.peers.checks import name_of
from odysseus.config.run import RunConfig

_OF_OURS = {
    *(f"comm_bytes_{purpose}" for purpose in PURPOSES),
    *(f"peak_memory_{kind}_bytes" for kind in KINDS),
    *("peak_activation_bytes", "peak_host_bytes"),
}
"""Columns that tell a peer's collectives and tensors apart, as nobody can from outside."""


def measure(run: RunConfig) -> dict[str, Any]:
    """Run a peer's cell on this rank; the measured columns of its row, the same on every rank.

    Call it on every rank of a launched job. The process group is started and stopped here.
    """
    with worker.process_group(run) as device:
        return measure_in_group(run, device)


def measure_in_group(run: RunConfig, device: torch.device) -> dict[str, Any]:
    """As :func:`measure`, in a process group that is there already."""
    theirs, wrong = checked(as_method.ours(run), name_of(run.method), device)
    if wrong:
        return {"status": "invalid", "error": wrong}
    gc.collect()  # ours, whose memory is not the peer's
    if device.type == "cuda":
        torch.cuda.empty_cache()
    losses, times_ms = worker.timed_steps(run, theirs.train, theirs.samples, device)
    dist.barrier()
    columns = worker.metered_columns(
        run, times_ms, theirs.train, theirs.memory_of_step, theirs.samples, device
    )
    told = {name: value for name, value in columns.items() if name not in _OF_OURS}
    return told | {"loss_first": losses[0].item(), "loss_last": losses[-1].item()}
