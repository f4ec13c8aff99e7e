"""Predict the step of a published row, from dry runs of one replica."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.hardware import profile_file
from bench.simulator import predict, target, tiles
from bench.simulator.cost_model import Clock
from bench.simulator.program import Op
from bench.theory import model_sizes
from bench.validation.published import Published
from odysseus.config.groups import DryRun
from odysseus.config.run import RunConfig

BUCKET_ELEMENTS = 25 * 2**20 // 2
"""Gradients in bf16 that PyTorch's DDP reduces at once (``bucket_cap_mb`` = 25)."""
BACKWARD = 2 / 3
"""Share of a micro step that is backward: twice forward's FLOPs."""


@dataclass(frozen=True)
class Step:
    """The seconds of a run's parts.

    Attributes:
        micro_s: Each micro step.
        once_s: What happens once in a step: the update.
    """

    micro_s: float
    once_s: float


def digest(run: DryRun) -> str:
    """Return a text that changes with the speeds or constants that a prediction rests on."""
    known = profile_file.find(run.hardware).speeds, tiles.FITTED
    return hashlib.sha256(repr(known).encode()).hexdigest()[:12]


def steps_s(rows: Sequence[Published]) -> list[float]:
    """Return the predicted seconds of a step of rows whose :func:`one_micro_step` is the same, from
    dry runs of one and of two micro steps.

    Raises:
        ValueError: a row cannot be dry-run.
    """
    alone = one_micro_step(rows[0].run)
    if all(row.run == alone and row.replicas == 1 for row in rows):
        return [_step_s(alone)] * len(rows)
    step = step_of(alone)
    return [with_replicas(row, step) for row in rows]


def one_micro_step(run: RunConfig) -> RunConfig:
    """Return the run with one micro step: rows in which it is equal share their dry runs."""
    return replace(run, gradient_accumulation_steps=1)


def step_of(run: RunConfig) -> Step:
    """Divide a step of one micro step into what each micro step takes, and the rest."""
    one, two = (_step_s(replace(run, gradient_accumulation_steps=number)) for number in (1, 2))
    return Step(two - one, 2 * one - two)


def _step_s(run: RunConfig) -> float:
    simulated = predict.timeline(run, predict.count(run))
    if simulated is None:
        raise ValueError(f"hardware = {run.hardware} has no speeds; valid: a profile with speeds")
    return simulated.step_s


def with_replicas(row: Published, step: Step) -> float:
    """Return the seconds of a row's step: its micro steps, the update, and what its replicas send.

    Gradients are reduced in fp32, in DDP's buckets, beside the last micro step's backward. With
    ZeRO-1 each replica updates its share of the weights, and all gather them afterwards, in bf16
    (nanotron's ``get_fp32_accum_hook`` and ``ZeroDistributedOptimizer``).
    """
    micro_steps = row.run.gradient_accumulation_steps
    computed = micro_steps * step.micro_s
    if row.replicas == 1:
        return computed + step.once_s
    clock = _clock(row)
    elements = model_sizes.columns(row.run)["parameters"] / row.run.world_size
    size = 4 * min(BUCKET_ELEMENTS, elements)
    reduced = elements * 4 / size * _collective_s(clock, "all_reduce", size, row)
    exposed = max(0.0, reduced - BACKWARD * step.micro_s)
    if not row.zero:
        return computed + step.once_s + exposed
    gathered = _collective_s(clock, "all_gather", 2 * elements, row)
    return computed + step.once_s / row.replicas + exposed + gathered


def _clock(row: Published) -> Clock:
    """Return the clock of all replicas: their ranks fill nodes in order."""
    alone = target.clock(row.run)
    assert alone, "the row's profile has speeds"
    profile = profile_file.find(row.run.hardware)
    return replace(alone, ranks_per_node=profile.ranks_per_node(row.gpus))


def _collective_s(clock: Clock, kind: str, size: float, row: Published) -> float:
    """Return the seconds of a collective of all replicas of a rank."""
    ranks = tuple(range(0, row.gpus, row.run.world_size))
    passes = 2 if kind == "all_reduce" else 1
    sent = passes * size * (row.replicas - 1) / row.replicas
    return clock.seconds(Op("", kind, "", (), bytes=sent, sizes=(int(size),), ranks=ranks))
