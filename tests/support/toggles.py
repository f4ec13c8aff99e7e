"""Every memory trick as a toggle, and runs with them compared with the reference."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from methods import method_of
from odysseus.config.run import OptimizerOptions, RunConfig
from odysseus.io.text import Samples
from odysseus.parallel import sharding
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.parity import TOLERANCE, reference, reference_gradients
from tests.support.ranks import run_ranks
from tests.support.runs import RUN

BASE = replace(RUN, seq_len=68, tiled_loss_compute=False)
"""Two blocks, batch 2; at N = 4, 17 tokens per rank: two tiles of an MLP 32 wide, one ragged."""

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
    "optimizer_masters": {"optimizer": OptimizerOptions(offload="masters")},
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


def errors(runs: list[RunConfig], backend: str = "inductor") -> list[dict[str, float]]:
    """Return each run's largest errors on this rank; all runs share their reference and their
    mesh.

    Args:
        backend: What torch.compile makes of the graphs that it finds.
    """
    torch.set_num_threads(1)
    if any(run.compile for run in runs):  # in a process of its own
        torch.compile = partial(torch.compile, backend=backend)
    run = runs[0]
    mesh = make_mesh(torch.device("cpu"), run)
    loss, norm, gradients = reference_gradients(run)
    updated = reference_weights(run, gradients)
    found = []
    for run in runs:
        trainer = Trainer(run, method_of(run.method), mesh)
        samples = Samples(run, mesh.replica, mesh.shard, mesh.device)
        loss_error = abs(trainer.forward_backward(samples.step(0)).item() - loss)
        gradient_errors = largest(trainer.gradients(), gradients)
        norm_error = abs(trainer.grad_norm().item() - norm) / norm
        trainer.optimizer.update()
        weight_errors = largest(trainer.local_pieces(), updated)
        found.append(
            {
                "loss": loss_error,
                "norm": norm_error,
                **gradient_errors,
                "weights": max(weight_errors.values()),
            }
        )
    return found


def reference_weights(
    run: RunConfig, gradients: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Every whole tensor after one AdamW step of the reference."""
    model, architecture = reference(run), run.architecture
    for name, parameter in model.named_parameters():
        parameter.grad = torch.empty_like(parameter)
        for piece, view in sharding.cut_rows(parameter.grad, sharding.pieces(name, architecture)):
            view.copy_(piece.of(gradients[piece.name]))
    torch.optim.AdamW(model.parameters(), lr=run.optimizer.learning_rate).step()
    updated = copy.deepcopy(gradients)
    for piece, view in sharding.local_pieces(model, architecture):
        piece.of(updated[piece.name]).copy_(view)
    return updated


def largest(held: Any, expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the largest error of every tensor among this rank's pieces."""
    worst: dict[str, float] = {}
    for piece, view in held:
        error = (view - piece.of(expected[piece.name])).abs().max().item()
        worst[piece.name] = max(error, worst.get(piece.name, 0.0))
    return worst


def check_all(runs: list[RunConfig], backend: str = "inductor") -> None:
    """Check that runs with one reference and one mesh equal the reference on every rank.

    Args:
        backend: What torch.compile makes of the graphs that it finds.
    """
    # A process stops compiling again after a few shapes, and would run what follows uncompiled.
    fresh = any(run.compile for run in runs)
    for rank in run_ranks(errors, runs[0].world_size, runs, backend, fresh=fresh):
        for run, worst in zip(runs, rank, strict=True):
            # AdamW divides by the root of a gradient's square: weights are off by as much as the
            # gradients are in relation to the smallest ones, about 1e-6.
            assert worst.pop("weights") < 1e-8, run
            assert {name: e for name, e in worst.items() if not e < TOLERANCE} == {}, run
