"""The dry run: one rank's step on tensors without values, in a process group without peers.

It runs the code of real ranks, so collectives, allocations and kernels have their true order at any
world size; nothing is computed. On a GPU profile the kernels are those of
bench/simulator/cuda_kernels.py, and sizes are rounded up as CUDA's allocator rounds them.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from bench.hardware import profile_file
from bench.meters.flops import FlopMeter
from bench.meters.memory import HOST, Course, MemoryMeter, Peak
from bench.meters.step import flop_columns, memory_columns, memory_of_step
from bench.meters.traffic import TrafficMeter
from bench.simulator import cuda_kernels, fit, shallow
from bench.simulator.fake_world import META, cpu_kernels, few_tiles, only_rank
from bench.simulator.program import Program
from bench.simulator.ranks import (
    busiest_rank,
    first_of_ring,
    places_in_ring,
    share_of_scores,
    with_most_rows,
)
from bench.simulator.recorder import Recorder
from bench.simulator.target import attention_of, clock, on_gpu
from bench.theory import experts
from methods import method_of
from odysseus.config import router_load
from odysseus.config.run import RunConfig
from odysseus.io.text import Samples
from odysseus.model.kernels import check_flash
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer

CUDA_ROUNDING_BYTES = 512
"""PyTorch's caching allocator rounds sizes up to a multiple of this (CUDACachingAllocator.cpp)."""


@dataclass(frozen=True)
class Counted:
    """One rank's step, counted.

    Attributes:
        traffic: The row's columns of bytes sent and calls.
        flops: The row's columns of FLOPs of attention and matmuls.
        memory: The meter that watched the step.
        program: The operations that the host issues; empty unless a program was asked for.
    """

    rank: int
    traffic: dict[str, int]
    flops: dict[str, int]
    memory: MemoryMeter
    program: Program

    @property
    def peak(self) -> Peak:
        return self.memory.peak()

    @property
    def course(self) -> Course:
        return self.memory.course()


def check(run: RunConfig) -> None:
    """Raise ValueError if a dry run cannot count the run, or a real run sets a dry run's option."""
    if not run.dry_run:
        for name, unset in (("hardware", ""), ("rank", -1), ("router_load", router_load.BALANCED)):
            if getattr(run, name) != unset:
                raise ValueError(f"{name} = {getattr(run, name)} is for dry_run = true only")
        return
    refused = [
        ("compile", run.compile, "false: compiled code hides its operations"),
        ("ring_backend", run.ring_backend == "yunchang", "native, allgather"),
    ]
    if not on_gpu(run):  # Liger's kernels are for CUDA
        engines = "auto, fused, checkpoint, torch"
        refused += [
            ("model.type", run.model.type == "liger", "torch, or hardware of GPUs"),
            (
                "tiled_loss_engine",
                run.tiled_loss_engine == "liger",
                f"{engines}, or hardware of GPUs",
            ),
        ]
    for name, wrong, valid in refused:
        if wrong:
            raise ValueError(f"dry_run = true does not know this {name}; valid: {valid}")
    if not run.hardware:
        return
    if run.data.pack and run.token_axes.ring > 1:
        raise ValueError(
            f"hardware = {run.hardware} does not say which rank of a ring has most of the "
            "documents of data.pack = true; valid: data.pack = false, no ring, or no hardware"
        )
    if on_gpu(run):
        check_flash(run, f"hardware = {run.hardware}")
    known, profile = clock(run), profile_file.find(run.hardware)
    if known is None:
        return
    if profile.dtype not in ("", run.dtype):
        raise ValueError(
            f"hardware = {run.hardware} was calibrated in {profile.dtype}, not in dtype = "
            f"{run.dtype}; valid: dtype = {profile.dtype}, or a profile of that dtype"
        )
    if not known.knows(run.world_size):
        raise ValueError(
            f"hardware = {run.hardware} has no links for world_size = {run.world_size}, "
            f"{known.ranks_per_node} ranks per node; valid: what it was calibrated on"
        )
    if known.attention not in known.speeds.attention:
        raise ValueError(
            f"model.attn_implementation = {attention_of(run)} is not known to "
            f"hardware = {run.hardware}; valid: {', '.join(known.speeds.attention)}"
        )


def counted(run: RunConfig, with_program: bool = False, only_memory: bool = False) -> Counted:
    """Count the step of the rank that the run names, by default of the one with the most memory.

    Args:
        with_program: Whether to record the operations that its host issues, to predict time.
        only_memory: Whether to count neither traffic nor FLOPs.
    """
    rank = run.rank if run.rank >= 0 else heaviest_rank(run)
    return count(run, rank, with_program, only_memory)


def columns(run: RunConfig, counted: Counted) -> dict[str, Any]:
    """The columns of a dry run's row."""
    return {
        **flop_columns_of(run, counted.rank, counted.flops),
        **counted.traffic,
        **columns_of_memory(run, counted),
    }


def columns_of_memory(run: RunConfig, counted: Counted) -> dict[str, Any]:
    """The columns of a row of which only the memory was counted."""
    outcome = need(run, counted).outcome if run.hardware else {}
    known = {"rank": counted.rank, "backend": "fake", "status": "ok", "error": ""}
    return known | memory_columns(counted.memory) | outcome


def need(run: RunConfig, counted: Counted) -> fit.Need:
    """Return what a counted step needs on the run's profile, and the limits."""
    return fit.need(run, counted.peak.bytes, counted.memory.peak(HOST).bytes)


def flop_columns_of(run: RunConfig, rank: int, flops: dict[str, int]) -> dict[str, float]:
    """Return the row's columns of FLOPs from those of one rank; attention's differ by rank."""
    mean = flops["attention_flops"] / share_of_scores(run, rank)
    most = mean * share_of_scores(run, busiest_rank(run))
    attention = {"attention_flops_max": round(most), "attention_flops_mean": float(mean)}
    return flop_columns([flops]) | attention | _matmul_columns(run, rank, flops["matmul_flops"])


def _matmul_columns(run: RunConfig, rank: int, flops: int) -> dict[str, float]:
    """Return the columns of matmuls where experts get unequal loads, else none. FLOPs grow evenly
    with the rows of a rank's experts; a second rank says how fast."""
    if not (run.has_unequal_experts and run.heads_divide):
        return {}
    rows = [experts.load_of(run, at).returned_rows or Fraction() for at in range(run.expert_ranks)]
    own, most, mean = rows[rank % len(rows)], max(rows), sum(rows, Fraction()) / len(rows)
    if own == mean == most:
        return {}
    other = max(range(len(rows)), key=lambda at: abs(rows[at] - own))
    slope = (count(run, other).flops["matmul_flops"] - flops) / (rows[other] - own)
    at_most, at_mean = (flops + slope * (others - own) for others in (most, mean))
    return {"matmul_flops_max": round(at_most), "matmul_flops_mean": float(at_mean)}


def heaviest_rank(run: RunConfig) -> int:
    """Find the rank with the highest peak, by dry runs of a shallow model.

    Ring ranks see different blocks of keys. Among the ranks of one ring rank the first has the
    highest peak, as ZeRO gives the first ranks the most rows; where heads do not divide, the first
    with as many heads. Where experts are shared out, the ranks whose experts get the most rows may
    have a higher peak; of equal ones they are the slowest.
    """
    (ring, _), places = run.token_axes, [0]
    if not run.heads_divide:
        sizes = [(len(q), len(kv)) for q, kv in run.head_shares]
        places = sorted({sizes.index(size) for size in sizes})
    first = [first_of_ring(run, place, at) for place in places_in_ring(ring) for at in places]
    ranks = [*dict.fromkeys(with_most_rows(run) + first)]
    if len(ranks) == 1:
        return ranks[0]
    return _heaviest_of(
        shallow.with_blocks(run, min(2, run.architecture.num_hidden_layers)), tuple(ranks)
    )


@lru_cache(maxsize=4096)
def _heaviest_of(run: RunConfig, ranks: tuple[int, ...]) -> int:
    """Return the rank with the highest peak. It is remembered: models that differ only in their
    number of blocks ask for it again."""
    with few_tiles():
        return max(ranks, key=lambda rank: count(run, rank, only_memory=True).peak.bytes)


def count(
    run: RunConfig, rank: int, with_program: bool = False, only_memory: bool = False
) -> Counted:
    """Count one step of one rank, after a first step that makes the optimizer's state.

    Args:
        with_program: Whether to record the operations that the host issues, to predict time.
        only_memory: Whether to count neither traffic nor FLOPs, which takes less time.
    """
    gpu = on_gpu(run)
    kernels = cuda_kernels.kernels_of(run) if gpu else cpu_kernels(run)
    meter = MemoryMeter(CUDA_ROUNDING_BYTES if gpu else 1)
    # `need` compares with the profile's host afterwards; this machine's memory does not matter.
    run = replace(run, host_memory_limit_bytes=2**62)
    with only_rank(rank, run.world_size, gpu) as device:
        mesh = make_mesh(META, run)
        trainer = Trainer(run, method_of(run.method), mesh, kernels)
        samples = Samples(run, mesh.replica, mesh.shard, META)
        with few_tiles():
            trainer.step(samples.step(0))
        # The samples of a measured row: where documents are packed, they differ.
        at = run.warmup_steps + run.steps
        traffic, done = TrafficMeter(), FlopMeter()
        with ExitStack() as stack:
            for other in () if only_memory else (traffic, done):
                stack.enter_context(other)
            recorder = Recorder(device, meter) if with_program else None
            memory_of_step(trainer, samples.step(at), meter, recorder)
        totals = traffic.totals(), done.columns
        return Counted(rank, *totals, meter, device.program)
