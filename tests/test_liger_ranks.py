"""Ranks that compute with Liger's kernels equal the single-process reference, in fp32.

Triton's interpreter runs them, as in tests/test_liger.py.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from methods import METHODS
from odysseus.config import RunConfig
from odysseus.data import Samples
from odysseus.mesh import make_mesh
from odysseus.step import Trainer
from tests.test_liger import CPU, RUN, TOLERANCE, interpreting
from tests.test_parity import reference_gradients
from tests.test_toggles import ALL_ON, TOGGLES


def step_errors(rank: int, store: str, runs: list[RunConfig]) -> list[float]:
    """The largest error of this rank's step of each run.

    One process group serves all: PyTorch's meshes do not outlive theirs, but are kept by shape.
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
        return [step_error(run) for run in runs]
    finally:
        dist.destroy_process_group()


def step_error(run: RunConfig) -> float:
    """Of this rank's loss and gradients, against the single-process reference."""
    mesh = make_mesh(CPU, run)
    trainer = Trainer(run, METHODS[run.method], mesh)
    samples = Samples(run, mesh.replica, mesh.shard, CPU)
    found = trainer.forward_backward(samples.step(0)).item()
    exact, _, gradients = reference_gradients(run)
    errors = [abs(found - exact) / exact]
    for piece, view in trainer.gradients():
        whole = gradients[piece.name]
        errors.append(((view - piece.of(whole)).abs().max() / whole.abs().max()).item())
    return max(errors)


def check_steps(pool: ProcessPoolExecutor, folder: Path, runs: list[RunConfig]) -> None:
    store = str(folder / "store")
    ranks = [pool.submit(step_errors, rank, store, runs) for rank in range(runs[0].world_size)]
    for errors in (rank.result() for rank in ranks):
        assert [(run, e) for run, e in zip(runs, errors, strict=True) if not e < TOLERANCE] == []


def test_two_ranks_equal_the_reference(tmp_path: Path) -> None:
    """By two methods that share no linear layer."""
    with interpreting(2) as pool:
        check_steps(pool, tmp_path, [replace(RUN, method=m) for m in ("ulysses", "tp_sp")])


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_liger_with_every_trick(tmp_path: Path, world_size: int) -> None:
    """By every method, with each trick, all of them, and across a ring."""
    off = {"activation_checkpointing": False, "tiled_mlp_compute": False}
    base = replace(RUN, world_size=world_size, seq_len=16, **off)
    base = replace(base, model=replace(RUN.model, intermediate_size=8))
    own = [tricks for tricks in TOGGLES.values() if "tiled_loss_engine" not in tricks]
    own += [ALL_ON, ALL_ON | {"ring_parallel_size": 2}]
    runs = [replace(base, method=m, **tricks) for m, tricks in itertools.product(METHODS, own)]
    for run in runs:
        run.check()
        METHODS[run.method].check(run)
    with interpreting(world_size) as pool:
        check_steps(pool, tmp_path, runs)
