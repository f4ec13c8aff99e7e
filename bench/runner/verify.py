"""The correctness experiment: the same training with and without sequence parallelism.

The reference gives every rank whole samples (DP = N, SP = 1, GAS = 1) and has every trick off; or
it is plain Transformers in one process, which shares its samples and initial weights alone. The
candidate splits each sample over n ranks and accumulates n micro steps (DP = N/n, SP = n, GAS = n).
All read the same samples in the same step, as in arXiv 2506.13996 §5.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from bench.runner import launch, transformers_reference, worker
from odysseus.config.groups import Precision
from odysseus.config.run import OptimizerOptions, RunConfig

Train = Callable[[RunConfig], dict[str, Any]]
"""A training in one worker, as :func:`history`; a module-level function."""
REFERENCES = ("native", "transformers")
"""native: this project's own model and trainer, data parallel, every trick off. transformers: plain
Transformers and PyTorch's AdamW in one process."""
QUANTITIES = ("loss", "grad_norm")
NEEDED = (
    "step",
    *(f"{name}{suffix}" for suffix in ("_reference", "") for name in QUANTITIES),
    *(f"{name}_difference" for name in QUANTITIES),
)
"""Columns of the table of steps that all versions write."""
COLUMNS = (*NEEDED, "tolerance")
"""Columns of the table of steps."""
TOLERANCES = {
    "fp64": (1e-10, "fp64 sums in another order differ by 1e-16, which training enlarges"),
    "fp32": (1e-4, "fp32 sums in another order differ by 1e-7, of which 50 steps made 6e-6"),
    "bf16": (2e-2, "bf16 rounds at 4e-3, at other places, of which 10 steps made 5e-4"),
}
"""Largest relative difference allowed by dtype, and the reason. A gradient that is N times too
large or not summed over ranks changes the first digit of the first gradient norm."""


@dataclass(frozen=True)
class Verdict:
    """The differences between two trainings.

    Attributes:
        steps: One row per step: loss and grad_norm of both, their relative differences, and the
            tolerance.
        largest: The largest relative difference of each quantity.
        tolerance: The largest relative difference that passes.
        why: The reason for this tolerance.
    """

    steps: pd.DataFrame
    largest: dict[str, float]
    tolerance: float
    why: str

    @property
    def passed(self) -> bool:
        """Whether all differences are within the tolerance; NaN fails."""
        return all(difference <= self.tolerance for difference in self.largest.values())


def reference_of(run: RunConfig) -> RunConfig:
    """The same training as a plain data-parallel run with every trick off."""
    return RunConfig(
        model=replace(run.model, type="torch"),
        world_size=run.world_size,
        sequence_parallel_size=1,
        seq_len=run.seq_len,
        micro_batch_size=run.micro_batch_size,
        gradient_accumulation_steps=run.gradient_accumulation_steps,
        dtype=run.dtype,
        optimizer=OptimizerOptions(learning_rate=run.optimizer.learning_rate),
        data=run.data,
        steps=run.steps,
        seed=run.seed,
        timeout_s=run.timeout_s,
        device=run.device,
        expandable_segments=run.expandable_segments,
        numa_binding=run.numa_binding,
    )


def candidate_of(run: RunConfig) -> RunConfig:
    """The run with as many micro steps as it needs to read the reference's samples."""
    steps = run.gradient_accumulation_steps * run.shards
    return replace(run, gradient_accumulation_steps=steps)


def history(run: RunConfig) -> dict[str, Any]:
    """Train on this rank. Return loss and gradient norm of every step, the same on every rank."""
    with worker.process_group(run) as device:
        trainer, samples = worker.start(run, device)
        results = [trainer.step(samples.step(step)) for step in range(run.steps)]
        return {name: [getattr(r, name).item() for r in results] for name in QUANTITIES}


def _reference(run: RunConfig, name: str) -> tuple[RunConfig, Train]:
    """Return a reference's run, and how to train it."""
    native = reference_of(run)
    if name == "native":
        return native, history
    return transformers_reference.one_process(native), transformers_reference.history


def verify(run: RunConfig, train: Train = history, reference: str = "native") -> Verdict:
    """Train the reference and the candidate, and compare them step by step.

    Args:
        train: Trains the candidate.
        reference: A name in :data:`REFERENCES`.

    Raises:
        RuntimeError: one of the two trainings failed; the message says which and why.
    """
    steps = pd.DataFrame({"step": range(run.steps)})
    for suffix, variant, train_variant in (
        ("_reference", *_reference(run, reference)),
        ("", candidate_of(run), train),
    ):
        outcome = launch.run_workers(variant, train_variant)
        if outcome["status"] != "ok":
            which = "reference" if suffix else f"method {run.method}"
            raise RuntimeError(f"{which}: {outcome['status']}: {outcome['error']}")
        for name in QUANTITIES:
            steps[name + suffix] = outcome[name]
    for name in QUANTITIES:
        expected = steps[f"{name}_reference"]
        steps[f"{name}_difference"] = (steps[name] - expected).abs() / expected.abs()
    tolerance, why = TOLERANCES[coarsest_dtype(run)]
    steps["tolerance"] = tolerance
    largest = {name: float(steps[f"{name}_difference"].max(skipna=False)) for name in QUANTITIES}
    return Verdict(steps, largest, tolerance, why)


def coarsest_dtype(run: Precision) -> str:
    """The coarsest dtype that a run rounds to: its compute dtype or that of gradient reduction."""
    return "bf16" if run.reduce_dtype == torch.bfloat16 else run.dtype
