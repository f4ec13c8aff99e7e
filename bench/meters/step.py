"""Meter the memory of one optimizer step, and turn meters into columns of a row."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from statistics import fmean
from typing import Any

from bench.meters.memory import HOST, KINDS, MemoryMeter
from odysseus.io.text import Batch
from odysseus.parallel import sharding
from odysseus.training.trainer import Trainer


def memory_columns(meter: MemoryMeter) -> dict[str, int]:
    """Return the row's columns of memory from a meter that watched a step."""
    peak = meter.peak()
    kinds = {f"peak_memory_{kind}_bytes": peak.by_kind[kind] for kind in KINDS}
    activations = {"peak_activation_bytes": meter.peak("activations").bytes}
    host = {"peak_host_bytes": meter.peak(HOST).bytes}
    return {"peak_memory_bytes": peak.bytes, **kinds, **activations, **host}


def memory_of_step(
    trainer: Trainer,
    batches: list[Batch],
    meter: MemoryMeter | None = None,
    beside: AbstractContextManager[Any] | None = None,
) -> MemoryMeter:
    """Take one step under a meter that knows the trainer's parameters, gradients and optimizer.

    The trainer must have taken a step before: that makes the optimizer's state.

    Args:
        meter: By default a new one.
        beside: Another context for the same step, entered after the meter.
    """
    meter, run = meter or MemoryMeter(), trainer.run
    shards = HOST if run.parameter_offload == "cpu" else "parameters"
    states = [t for state in trainer.optimizer.torch.state.values() for t in state.values()]
    meter.watch(trainer.optimizer.shards, shards)
    meter.watch(states, HOST if run.optimizer_on_host else "optimizer")
    meter.watch(trainer.host.tensors, HOST)
    meter.watch([t for b in batches for t in b.tensors], "activations")
    with meter, beside or nullcontext():
        trainer.forward_backward(batches)
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        kind = HOST if run.parameter_offload == "cpu" else "gradients"
        meter.watch([sharding.local_shard(gradient)[0] for gradient in gradients], kind)
        del gradients
        trainer.grad_norm()
        trainer.optimizer.update()
    return meter


def flop_columns(of_ranks: list[dict[str, int]]) -> dict[str, float]:
    """Return the row's columns of FLOPs: those of the rank with the most, and the mean."""
    columns = {}
    for name in of_ranks[0]:
        flops_done = [rank[name] for rank in of_ranks]
        columns |= {f"{name}_max": max(flops_done), f"{name}_mean": fmean(flops_done)}
    return columns
