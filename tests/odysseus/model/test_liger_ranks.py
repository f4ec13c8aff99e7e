"""Ranks that compute with Liger's kernels equal the single-process reference, in fp32.

Triton's interpreter runs them, as in tests/odysseus/model/test_liger.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from bench.runner import verify, worker
from methods import METHODS
from odysseus.config.run import RunConfig
from tests.support.liger import CPU, RUN, TOLERANCE, interpreting
from tests.support.parity import reference_gradients
from tests.support.toggles import ALL_ON, TOGGLES


def on_rank(
    rank: int, store: str, function: Callable[[RunConfig], Any], runs: list[RunConfig]
) -> list[Any]:
    """Return the function's result for each run on this rank.

    All runs share one process group: PyTorch caches meshes by shape, and a mesh cannot be used
    after its group is destroyed.
    """
    world_size = runs[0].world_size
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, world_size),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    try:
        return [function(run) for run in runs]
    finally:
        dist.destroy_process_group()


def step_error(run: RunConfig) -> float:
    """The largest of this rank's loss and gradients, against the single-process reference."""
    trainer, samples = worker.start(run, CPU)
    found = trainer.forward_backward(samples.step(0)).item()
    exact, _, gradients = reference_gradients(run)
    errors = [abs(found - exact) / exact]
    for piece, view in trainer.gradients():
        whole = gradients[piece.name]
        errors.append(((view - piece.of(whole)).abs().max() / whole.abs().max()).item())
    return max(errors)


def history(run: RunConfig) -> list[list[float]]:
    """Loss and gradient norm of every step of a training."""
    trainer, samples = worker.start(run, CPU)
    results = [trainer.step(samples.step(step)) for step in range(run.steps)]
    return [[r.loss.item(), r.grad_norm.item()] for r in results]


def on_ranks(
    folder: Path, function: Callable[[RunConfig], Any], runs: list[RunConfig]
) -> list[list[Any]]:
    """Return the function's results, per rank and run."""
    world_size, store = runs[0].world_size, str(folder / "store")
    with interpreting(world_size) as pool:
        ranks = [pool.submit(on_rank, rank, store, function, runs) for rank in range(world_size)]
        return [rank.result() for rank in ranks]


def check_steps(folder: Path, runs: list[RunConfig]) -> None:
    for errors in on_ranks(folder, step_error, runs):
        assert [(run, e) for run, e in zip(runs, errors, strict=True) if not e < TOLERANCE] == []


@pytest.mark.slow
def test_two_ranks_equal_the_reference(tmp_path: Path) -> None:
    """Two methods that share no linear layer, one with its attention in head chunks."""
    in_chunks = replace(RUN, method="ulysses", ulysses_head_chunks=2)
    check_steps(tmp_path, [replace(RUN, method="tp_sp"), in_chunks])


@pytest.mark.slow
def test_experts_with_liger(tmp_path: Path) -> None:
    """Experts that are cut, and experts that are shared out, with recomputation and tiles."""
    experts = {"intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
    losses = {"router_aux_loss_coef": 0.1, "router_z_loss_coef": 0.01}
    base = replace(RUN, seq_len=16, model=replace(RUN.model, **experts, **losses))
    check_steps(tmp_path, [replace(base, method=name) for name in ("tp_sp", "ulysses+expert")])


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_liger_with_every_trick(tmp_path: Path, world_size: int) -> None:
    """Each trick, all tricks, and those across a ring: on two ranks with every method, on four with
    one method each."""
    off = {"activation_checkpointing": False, "tiled_mlp_compute": False}
    base = replace(RUN, world_size=world_size, seq_len=16, **off)
    base = replace(base, model=replace(RUN.model, intermediate_size=8))
    own = [tricks for tricks in TOGGLES.values() if "tiled_loss_engine" not in tricks]
    own += [ALL_ON, ALL_ON | {"ring_parallel_size": 2}]
    every = itertools.product(METHODS, own)
    together = every if world_size == 2 else zip(itertools.cycle(METHODS), own, strict=False)
    runs = [replace(base, method=method, **tricks) for method, tricks in together]
    for run in runs:
        run.check()
        METHODS[run.method].check(run)
    check_steps(tmp_path, runs)


@pytest.mark.slow
def test_training_with_liger_and_every_trick(tmp_path: Path) -> None:
    """Train like ``python -m bench verify``, on four ranks, with Liger's kernels too; two steps,
    as the second one's loss is that of updated weights."""
    model = replace(RUN.model, intermediate_size=8)
    base = replace(RUN, world_size=4, seq_len=16, steps=2, model=model, **ALL_ON)
    runs = [replace(base, method=method) for method in METHODS]
    trained = [verify.reference_of(base), *map(verify.candidate_of, runs)]
    reference, *found = on_ranks(tmp_path, history, trained)[0]
    tolerance, _ = verify.TOLERANCES["fp32"]
    for run, steps in zip(runs, found, strict=True):
        assert np.allclose(steps, reference, rtol=tolerance, atol=0), (run.method, steps)
