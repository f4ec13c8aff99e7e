"""One rank of a cell: train and time some steps, then run two more under the meters."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from bench.meters.device import peak_flops_per_s, synchronize
from bench.meters.flops import FlopMeter
from bench.meters.memory import MemoryMeter
from bench.meters.step import flop_columns, memory_columns, memory_of_step
from bench.meters.traffic import TrafficMeter
from bench.runner.allocator import allocator_settings, configure_allocator
from bench.theory import model_flops
from methods import method_of
from odysseus.config.groups import Execution
from odysseus.config.run import RunConfig
from odysseus.io import checkpoint
from odysseus.io.text import Batch, Samples
from odysseus.memory.host_memory import ranks_per_node
from odysseus.parallel.mesh import make_mesh, pick_device, start_process_group
from odysseus.training.trainer import StepResult, Trainer

Result = TypeVar("Result")
Step = Callable[[list[Batch]], Result]
"""step(micro batches) trains one optimizer step and returns its result."""


def measure(run: RunConfig, save: str = "") -> dict[str, Any]:
    """Run a cell on this rank. Return the measured columns of its row, the same on every rank.

    Call it on every rank of a launched job; it starts and stops the process group.

    Args:
        save: Folder to which the weights are written after the timed steps; empty for none.
    """
    with process_group(run) as device:
        return measure_in_group(run, device, save)


@contextmanager
def process_group(run: RunConfig) -> Iterator[torch.device]:
    """Start the run's process group, yield this rank's device, and destroy the group at the end."""
    configure_allocator(run)
    device = pick_device(run.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    elif run.optimizer_on_host:  # ranks share the cores that AdamW runs on
        cores = len(os.sched_getaffinity(0)) // ranks_per_node(run.world_size)
        torch.set_num_threads(max(1, cores))
    start_process_group(device, run.timeout_s)
    try:
        yield device
    finally:
        # Free the objects that refer to process groups first, not while Python shuts down.
        gc.collect()
        dist.destroy_process_group()


def start(run: RunConfig, device: torch.device) -> tuple[Trainer, Samples]:
    """The run's trainer on this rank, and the samples that it reads."""
    mesh = make_mesh(device, run)
    trainer = Trainer(run, method_of(run.method), mesh)
    return trainer, Samples(run, mesh.replica, mesh.shard, device)


def measure_in_group(run: RunConfig, device: torch.device, save: str = "") -> dict[str, Any]:
    """Do the same as :func:`measure` in a process group that has already been started."""
    trainer, samples = start(run, device)
    results, times_ms = timed_steps(run, trainer.step, samples, device)
    dist.barrier()
    saved = _save(run, trainer, device, Path(save)) if save else {}
    memory = partial(memory_of_step, trainer)
    columns = metered_columns(run, times_ms, trainer.step, memory, samples, device)
    return columns | _number_columns(results) | saved


def metered_columns(
    run: RunConfig,
    times_ms: list[float],
    step: Step[Any],
    memory: Step[MemoryMeter],
    samples: Samples,
    device: torch.device,
) -> dict[str, Any]:
    """Run two more steps under meters. Return the columns of time, traffic, FLOPs and memory, the
    same on every rank. A collective.

    Args:
        times_ms: Milliseconds of each of this rank's timed steps.
        step: Trains one step.
        memory: Trains one step under a memory meter and returns the meter.
    """
    peak_flops, source = peak_flops_per_s(device, run.compute_dtype)
    at = run.warmup_steps + run.steps
    with torch.compiler.set_stance("force_eager"):  # the meters do not see compiled code
        traffic, flops_done = _metered_traffic(step, samples.step(at))
        peaks = _metered_memory(memory, samples.step(at + 1), device)
    ranks = gathered(
        {"ms": times_ms, "peak_flops": peak_flops, "memory": peaks, "flops": flops_done}
    )
    return (
        time_columns(run, [r["ms"] for r in ranks], fmean(r["peak_flops"] for r in ranks))
        | {"peak_flops_source": source}
        | traffic
        | flop_columns([r["flops"] for r in ranks])
        | max((r["memory"] for r in ranks), key=lambda m: m["peak_memory_bytes"])
        | {
            "backend": dist.get_backend(),
            "device": device.type,
            "hardware": hardware_name(device),
            "allocator_settings": allocator_settings() if device.type == "cuda" else None,
        }
    )


def _save(run: RunConfig, trainer: Trainer, device: torch.device, to: Path) -> dict[str, str]:
    """Write the weights. If that fails return status and error for the row, which keeps its
    numbers."""
    try:
        checkpoint.save(trainer.local_pieces(), run, trainer.mesh.world, device, to)
    except OSError as error:
        return {"status": "error", "error": f"save = {to}: {error}"}
    return {}


def hardware_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with open("/proc/cpuinfo") as info:
        models = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return f"{models[0] if models else 'unknown'} ({len(models)} cores)"


def timed_steps(
    run: Execution, step: Step[Result], samples: Samples, device: torch.device
) -> tuple[list[Result], list[float]]:
    """The results of all steps, and the milliseconds of each step after the warm-up."""
    results, times_ms = [], []
    for index in range(run.warmup_steps + run.steps):
        batches = samples.step(index)
        synchronize(device)
        start = time.perf_counter()
        results.append(step(batches))
        synchronize(device)
        times_ms.append((time.perf_counter() - start) * 1e3)
    return results, times_ms[run.warmup_steps :]


def _metered_traffic(
    step: Step[Any], batches: list[Batch]
) -> tuple[dict[str, int], dict[str, int]]:
    """The columns of this rank's traffic in one step, and those of its FLOPs."""
    with TrafficMeter() as meter, FlopMeter() as done:
        step(batches)
    return meter.totals(), done.columns


def _metered_memory(
    memory: Step[MemoryMeter], batches: list[Batch], device: torch.device
) -> dict[str, int]:
    allocator = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    meter = memory(batches)
    if device.type == "cuda":
        # The allocator also counts the workspace of kernels, which the meter does not see.
        allocator = {
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
        }
    return memory_columns(meter) | allocator


def gathered(local: dict[str, Any]) -> list[dict[str, Any]]:
    """The dictionaries of all ranks, in the order of the ranks. A collective."""
    ranks: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, local)
    return ranks


def time_columns(run: RunConfig, times_ms: list[list[float]], peak_flops: float) -> dict[str, Any]:
    """Return the columns of time: per step, that of the slowest rank.

    Args:
        times_ms: Milliseconds by rank and step.
        peak_flops: FLOP/s of one rank that MFU is a fraction of.
    """
    slowest_ms = np.max(times_ms, axis=0)
    p20, p50, p80 = np.percentile(slowest_ms, [20, 50, 80])
    quantiles = {"step_ms_p50": p50, "step_ms_p20": p20, "step_ms_p80": p80}
    return quantiles | model_flops.speed_columns(run, p50, peak_flops)


def _number_columns(results: list[StepResult]) -> dict[str, float]:
    first, last = results[0], results[-1]
    return {
        "loss_first": first.loss.item(),
        "loss_last": last.loss.item(),
        "grad_norm_first": first.grad_norm.item(),
        "grad_norm_last": last.grad_norm.item(),
    }
