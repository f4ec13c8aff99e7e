"""Every memory trick, alone and with every other, leaves the mathematics as it is.

Loss, every gradient and the weights after an AdamW step against one plain process, in fp64 at the
tolerance of tests/methods/test_parity.py: tiles and buckets add the same numbers in another order.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from methods import METHODS
from odysseus.config.run import OptimizerOptions, RunConfig
from odysseus.io.text import Samples
from odysseus.parallel import sharding
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.methods.test_parity import RUN, TOLERANCE, reference, reference_gradients
from tests.support.ranks import run_ranks

BASE = replace(RUN, seq_len=68, tiled_loss_compute=False)
"""Two blocks, batch 2; 17 tokens a rank at N = 4: two tiles of an MLP 32 wide, the last ragged."""
LOSS_TILES = {"tiled_loss_compute": True, "tiled_loss_bytes": 4 * 512 * 5}
TOGGLES: dict[str, dict[str, Any]] = {
    "activation_checkpointing": {"activation_checkpointing": True},
    "activation_checkpoint_cpu_offload": {"activation_checkpoint_cpu_offload": True},
    "tiled_mlp_compute": {"tiled_mlp_compute": True},
    "tiled_loss_fused": LOSS_TILES,
    "tiled_loss_checkpoint": LOSS_TILES | {"tiled_loss_engine": "checkpoint"},
    "tiled_loss_torch": LOSS_TILES | {"tiled_loss_engine": "torch"},
    "reduce_bucket_size": {"reduce_bucket_size": 1000},
    "optimizer_offload": {"optimizer": OptimizerOptions(offload="cpu")},
    "parameter_offload": {"parameter_offload": "cpu"},
    "kept_gathers": {"regather": False},
}
ALL_ON = LOSS_TILES | {
    "activation_checkpoint_cpu_offload": True,
    "tiled_mlp_compute": True,
    "reduce_bucket_size": 1000,
    "parameter_offload": "cpu",
}
AHEAD = {"zero_engine": "overlap", "reduce_bucket_size": 0}


def combinations() -> list[dict[str, Any]]:
    """Each toggle alone, each pair that is not two values of one field, and all at once; without
    prefetch, with weights kept for backward, with the overlapping engine and with both, the plain
    run and all."""
    chosen = list(TOGGLES.values())
    for one, other in itertools.combinations(TOGGLES.values(), 2):
        if not any(one.get(key, value) != value for key, value in other.items()):
            chosen.append(one | other)
    ways = ({"zero_prefetch": False}, {"reshard_after_forward": False}, AHEAD)
    ways += (AHEAD | ways[1],)
    return [*chosen, ALL_ON, *ways, *(ALL_ON | way for way in ways)]


def errors(runs: list[RunConfig]) -> list[dict[str, float]]:
    """Each run's largest errors on this rank; all runs share their reference and their mesh."""
    torch.set_num_threads(1)
    run = runs[0]
    mesh = make_mesh(torch.device("cpu"), run)
    loss, _, gradients = reference_gradients(run)
    updated = reference_weights(run, gradients)
    found = []
    for run in runs:
        trainer = Trainer(run, METHODS[run.method], mesh)
        samples = Samples(run, mesh.replica, mesh.shard, mesh.device)
        of_loss = abs(trainer.forward_backward(samples.step(0)).item() - loss)
        of_gradients = largest(trainer.gradients(), gradients)
        trainer.optimizer.update()
        axis = mesh.sequence
        held = sharding.local_pieces(
            trainer.model, run.architecture, trainer.method.split, axis.size, axis.rank
        )
        found.append(
            {"loss": of_loss, **of_gradients, "weights": max(largest(held, updated).values())}
        )
    return found


def reference_weights(
    run: RunConfig, gradients: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Every whole tensor after one AdamW step of the reference."""
    model, architecture = reference(run), run.architecture
    for name, parameter in model.named_parameters():
        parameter.grad = torch.empty_like(parameter)
        for piece, view in sharding.cut_rows(
            parameter.grad, sharding.pieces(name, architecture, {}, 1, 0)
        ):
            view.copy_(piece.of(gradients[piece.name]))
    torch.optim.AdamW(model.parameters(), lr=run.optimizer.learning_rate).step()
    updated = copy.deepcopy(gradients)
    for piece, view in sharding.local_pieces(model, architecture, {}, 1, 0):
        piece.of(updated[piece.name]).copy_(view)
    return updated


def largest(held: Any, expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest error of every tensor among this rank's pieces."""
    worst: dict[str, float] = {}
    for piece, view in held:
        error = (view - piece.of(expected[piece.name])).abs().max().item()
        worst[piece.name] = max(error, worst.get(piece.name, 0.0))
    return worst


def check_all(runs: list[RunConfig]) -> None:
    """Runs that share their reference and their mesh equal it on every rank."""
    for rank in run_ranks(errors, runs[0].world_size, runs):
        for run, worst in zip(runs, rank, strict=True):
            # AdamW divides by the root of a gradient's square: weights are off by as much as the
            # gradients are in relation to the smallest ones, about 1e-6.
            assert worst.pop("weights") < 1e-8, run
            assert {name: e for name, e in worst.items() if not e < TOLERANCE} == {}, run


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_every_pair_of_tricks(method: str, world_size: int) -> None:
    base = replace(BASE, method=method, world_size=world_size)
    check_all([replace(base, **toggles) for toggles in combinations()])


SLOWLY = ("tp_sp", "ulysses")  # as odysseus, but for tp_sp's MLP, which is as its attention


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOWLY)) for m in METHODS]
)
def test_compiled_blocks(method: str) -> None:
    """Blocks break up around collectives, some of them in place: what comes after them is right."""
    run = replace(BASE, method=method, world_size=2, compile=True, activation_checkpointing=True)
    check_all([run])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_compiled_blocks_with_every_trick(method: str, world_size: int) -> None:
    base = replace(BASE, method=method, world_size=world_size, compile=True)
    runs = [replace(base, **tricks) for tricks in (*TOGGLES.values(), ALL_ON)]
    check_all(runs)


@pytest.mark.parametrize("method", METHODS)
def test_all_tricks_with_replicas_and_accumulation(method: str) -> None:
    run = replace(BASE, method=method, world_size=4, sequence_parallel_size=2, **ALL_ON)
    check_all([replace(run, gradient_accumulation_steps=2)])
