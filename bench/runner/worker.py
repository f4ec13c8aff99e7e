"""One rank of a cell: train and time some steps, then run two more under the meters."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from bench import rows
from bench.meters import memory_trace
from bench.meters.device import (
    allocator_peak,
    data_sheet_flops_per_s,
    reset_peak,
    synchronize,
)
from bench.meters.flops import FlopMeter
from bench.meters.load import Interval, Watch, other_load
from bench.meters.memory import MemoryMeter
from bench.meters.step import flop_columns, memory_columns, memory_of_step
from bench.meters.traffic import TrafficMeter
from bench.runner import numa, rounds, step_log
from bench.runner.allocator import configure_allocator, settings_in_force
from methods import method_of
from odysseus.config.groups import Execution
from odysseus.config.run import RunConfig
from odysseus.io import checkpoint
from odysseus.io.text import Batch, Samples
from odysseus.memory.host_memory import ranks_per_node
from odysseus.model.kernels import attention_kernel
from odysseus.parallel.mesh import make_mesh, pick_device, start_process_group
from odysseus.training.trainer import StepResult, Trainer

Result = TypeVar("Result")
Step = Callable[[list[Batch]], Result]
"""step(micro batches) trains one optimizer step and returns its result."""
_LONGER_S = 60
"""Seconds by which the time-out of collectives is longer than that of the cell."""
_OWN_PEAKS = ("peak_activation_bytes", "peak_host_bytes")
"""Columns of the rank with the most of them."""


def measure(
    run: RunConfig, save: str = "", memory_trace: str = "", meters: bool = True
) -> dict[str, Any]:
    """Run a cell on this rank. Return the measured columns of its row, the same on every rank.

    Call it on every rank of a launched job; it starts and stops the process group.

    Args:
        save: Folder to which the weights are written after the timed steps; empty for none.
        memory_trace: File to which the metered step's memory is written; empty for none.
        meters: Whether to run two more steps under meters, for the columns that are the same in
            every round.
    """
    with process_group(run) as device:
        return measure_in_group(run, device, save, memory_trace, meters)


@contextmanager
def process_group(run: RunConfig) -> Iterator[torch.device]:
    """Start the run's process group, yield this rank's device, and destroy the group at the end.

    NCCL ends a group on all ranks together. So a rank that fails on a GPU leaves its group as it
    is: it would wait for ranks that hang in a collective which it has left.
    """
    configure_allocator(run)
    device = pick_device(run.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        cores = len(os.sched_getaffinity(0)) // ranks_per_node(run.world_size)
        if run.numa_binding == "node" and (beside := numa.bind(device)):
            cores = min(cores, len(beside))
        if run.optimizer_on_host:  # ranks share the cores that AdamW runs on
            torch.set_num_threads(max(1, cores))
    # Whoever waits for the ranks stops them first, and says so in the row.
    start_process_group(device, rounds.rounds_of(run) * run.timeout_s + _LONGER_S)
    has_failed = True
    try:
        yield device
        has_failed = False
    finally:
        if not has_failed or device.type == "cpu":
            # Free the objects that refer to process groups first, not while Python shuts down.
            gc.collect()
            dist.destroy_process_group()


def start(run: RunConfig, device: torch.device) -> tuple[Trainer, Samples]:
    """The run's trainer on this rank, and the samples that it reads."""
    mesh = make_mesh(device, run)
    trainer = Trainer(run, method_of(run.method), mesh)
    return trainer, Samples(run, mesh.replica, mesh.shard, device)


def measure_in_group(
    run: RunConfig,
    device: torch.device,
    save: str = "",
    memory_trace: str = "",
    meters: bool = True,
) -> dict[str, Any]:
    """Do the same as :func:`measure` in a process group that has already been started."""
    trainer, samples = start(run, device)
    results, times_ms, meanwhile = timed_steps(run, trainer.step, samples, device)
    peak = allocator_peak(device)
    columns = timed_columns(run, times_ms, meanwhile, device)
    columns |= _number_columns(results)
    columns |= step_log.write(run, [r.loss.item() for r in results], columns[rounds.TIMES])
    columns |= _save(run, trainer, device, Path(save)) if save else {}
    if not meters:
        return columns
    meter = MemoryMeter()
    memory = partial(memory_of_step, trainer, meter=meter)
    columns |= metered_columns(run, trainer.step, memory, samples, device)
    columns["attention_kernel"] = attention_kernel(run, device)
    if run.compile:  # the metered step is not
        columns |= max(gathered(peak), key=lambda rank: rank.get("peak_memory_bytes", 0))
    return columns | (_write_memory(run, meter, Path(memory_trace)) if memory_trace else {})


def timed_columns(
    run: RunConfig, times_ms: list[float], meanwhile: Interval, device: torch.device
) -> dict[str, Any]:
    """Return what :func:`bench.runner.rounds.merged` needs of a round, the same on every rank. A
    collective.

    Args:
        times_ms: Milliseconds of each of this rank's timed steps.
        meanwhile: CPU times during the timed steps.
    """
    ranks = gathered({"ms": times_ms, "meanwhile": meanwhile})
    return {
        rounds.TIMES: [max(ms) for ms in zip(*(rank["ms"] for rank in ranks), strict=True)],
        rounds.PEAK: data_sheet_flops_per_s(device, run.compute_dtype),
        rounds.CORES: os.cpu_count(),
        "other_load": other_load([rank["meanwhile"] for rank in ranks]),
    }


def metered_columns(
    run: RunConfig,
    step: Step[Any],
    memory: Step[MemoryMeter],
    samples: Samples,
    device: torch.device,
) -> dict[str, Any]:
    """Run two more steps under meters. Return the columns of traffic, FLOPs, memory and device, the
    same on every rank. A collective.

    Args:
        step: Trains one step.
        memory: Trains one step under a memory meter and returns the meter.
    """
    at = run.warmup_steps + run.steps
    with torch.compiler.set_stance("force_eager"):  # the meters do not see compiled code
        traffic, flops_done = _metered_traffic(step, samples.step(at))
        peaks = _metered_memory(memory, samples.step(at + 1), device)
    ranks = gathered({"memory": peaks, "flops": flops_done})
    return (
        traffic
        | flop_columns([r["flops"] for r in ranks])
        | memory_of([r["memory"] for r in ranks])
        | {
            "backend": dist.get_backend(),
            "device": device.type,
            "hardware": hardware_name(device),
            "allocator_settings": settings_in_force() if device.type == "cuda" else None,
        }
    )


def memory_of(ranks: list[dict[str, int]]) -> dict[str, int]:
    """Return the columns of the rank with the highest peak; those of activations and of host memory
    are of the rank with the most of them."""
    own = {name: max(rank[name] for rank in ranks) for name in _OWN_PEAKS}
    return max(ranks, key=lambda rank: rank["peak_memory_bytes"]) | own


def _save(run: RunConfig, trainer: Trainer, device: torch.device, to: Path) -> dict[str, str]:
    """Write the weights. If that fails return status and error for the row, which keeps its
    numbers."""
    try:
        checkpoint.save(trainer.local_pieces(), run, trainer.mesh.world, device, to)
    except OSError as error:
        return {"status": "error", "error": f"save = {to}: {error}"}
    return {}


def _write_memory(run: RunConfig, meter: MemoryMeter, to: Path) -> dict[str, str]:
    """Write the memory over the step of the rank with the highest peak. If that fails return
    status and error for the row, which keeps its numbers. A collective."""
    ranks = gathered({"peak": meter.peak().bytes, "course": meter.course()})
    if dist.get_rank():
        return {}
    try:
        course = max(ranks, key=lambda rank: rank["peak"])["course"]
        memory_trace.write(course, to, rows.identity(run))
    except OSError as error:
        return {"status": "error", "error": f"memory_trace = {to}: {error}"}
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
) -> tuple[list[Result], list[float], Interval]:
    """The results of all steps, and the milliseconds of each step after the warm-up with the CPU
    times meanwhile."""
    results, times_ms, watch = [], [], Watch()
    for index in range(run.warmup_steps + run.steps):
        if index == run.warmup_steps:
            watch = Watch()
            reset_peak(device)
        batches = samples.step(index)
        synchronize(device)
        start = time.perf_counter()
        results.append(step(batches))
        synchronize(device)
        times_ms.append((time.perf_counter() - start) * 1e3)
    return results, times_ms[run.warmup_steps :], watch.interval()


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
    reset_peak(device)
    return memory_columns(memory(batches)) | allocator_peak(device)


def gathered(local: dict[str, Any]) -> list[dict[str, Any]]:
    """The dictionaries of all ranks, in the order of the ranks. A collective."""
    ranks: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, local)
    return ranks


def _number_columns(results: list[StepResult]) -> dict[str, float]:
    first, last = results[0], results[-1]
    return {
        "loss_first": first.loss.item(),
        "loss_last": last.loss.item(),
        "grad_norm_first": first.grad_norm.item(),
        "grad_norm_last": last.grad_norm.item(),
    }
