"""Every method equals the single-process reference: the loss and every gradient, in fp64.

The tolerance is 1e-12 absolute on gradients of order 1e-2: fp64 sums in another order differ by
about 1e-16; a missing or doubled contribution, by 1e-4 and more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from methods import METHODS
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.io.text import Batch, Samples
from odysseus.model.decoder import CausalLM, reference_model
from odysseus.parallel import sharding
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.ranks import run_ranks

TOLERANCE = 1e-12

MODEL = ModelOptions(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
)
RUN = RunConfig(model=MODEL, seq_len=32, micro_batch_size=2, dtype="fp64")
VARIANTS = {
    "kv_heads_more_than_ranks": MODEL,
    "kv_heads_fewer_than_ranks": replace(MODEL, num_key_value_heads=1),
    "qwen": replace(
        MODEL,
        num_key_value_heads=2,
        use_qk_norm=True,
        attention_bias=True,
        attention_output_bias=True,
    ),
    "tied_llama3": replace(MODEL, tie_word_embeddings=True, rope_factor=8.0),
    "ragged_rows": replace(MODEL, vocab_size=259, hidden_size=36),
}


def initial_weights(run: RunConfig) -> dict[str, torch.Tensor]:
    """Every whole Hugging Face tensor that the run's seed decides."""
    whole = {}
    for name, shape in sharding.huggingface_shapes(run.architecture).items():
        columns = (0, 1) if len(shape) == 1 else (0, shape[1])
        piece = sharding.Piece(name, shape, (0, shape[0]), columns)
        whole[name] = torch.empty(shape, dtype=run.master_dtype)
        sharding.initialize(iter([(piece, whole[name])]), run.seed)
    return whole


def reference(run: RunConfig) -> CausalLM:
    model = reference_model(run.architecture).to(run.master_dtype)
    whole = initial_weights(run)
    with torch.no_grad():
        for piece, view in sharding.local_pieces(model, run.architecture, {}, 1, 0):
            view.copy_(piece.of(whole[piece.name]))
    return model


def reference_gradients(run: RunConfig) -> tuple[float, float, dict[str, torch.Tensor]]:
    """The loss, gradient norm and whole gradients of one step, in one process."""
    model = reference(run)
    alone = replace(
        run,
        world_size=1,
        sequence_parallel_size=0,
        ring_parallel_size=1,
        gradient_accumulation_steps=run.gradient_accumulation_steps * run.data_parallel_size,
    )
    batches = Samples(alone, replica=0, shard=0, device=torch.device("cpu")).step(0)
    losses = [sum_of_losses(model, batch) for batch in batches]
    loss = torch.stack(losses).sum() / sum((batch.labels != -100).sum() for batch in batches)
    loss.backward()
    square = sum(float(p.grad.square().sum()) for p in model.parameters())
    gradients = {
        name: torch.zeros(shape, dtype=run.master_dtype)
        for name, shape in sharding.huggingface_shapes(run.architecture).items()
    }
    for name, parameter in model.named_parameters():
        of = sharding.pieces(name, run.architecture, {}, 1, 0)
        for piece, view in sharding.cut_rows(parameter.grad, of):
            piece.of(gradients[piece.name]).copy_(view)
    return loss.item(), square**0.5, gradients


def sum_of_losses(model: CausalLM, batch: Batch) -> torch.Tensor:
    """Every packed document by itself, as if there were no others."""
    tokens = batch.input_ids, batch.position_ids, batch.labels
    if batch.documents is None:
        return model(*tokens)
    losses = []
    for row, starts in enumerate(batch.documents.starts):
        for first, last in pairwise([*starts, batch.input_ids.shape[1]]):
            ids, positions, labels = (x[row : row + 1, first:last] for x in tokens)
            assert positions.tolist() == [list(range(last - first))]
            losses.append(model(ids, positions, labels))
    return torch.stack(losses).sum()


def compare(run: RunConfig) -> tuple[float, dict[str, float]]:
    """One step on this rank against the reference: loss error, largest gradient error by tensor."""
    torch.set_num_threads(1)
    mesh = make_mesh(torch.device("cpu"), run)
    trainer = Trainer(run, METHODS[run.method], mesh)
    expected_loss, expected_norm, expected = reference_gradients(run)
    samples = Samples(run, mesh.replica, mesh.shard, mesh.device)
    loss = trainer.forward_backward(samples.step(0)).item()
    norm = trainer.grad_norm().item()
    errors: dict[str, float] = {}
    for piece, view in trainer.gradients():
        error = (view - piece.of(expected[piece.name])).abs().max().item()
        errors[piece.name] = max(error, errors.get(piece.name, 0.0))
    assert norm == pytest.approx(expected_norm, rel=1e-12)
    return abs(loss - expected_loss), errors


def assert_parity(run: RunConfig, on_rank: Callable[[RunConfig], Any] = compare) -> None:
    """Every rank's errors are rounding.

    Args:
        on_rank: As :func:`compare`.
    """
    run.check()
    ranks = run_ranks(on_rank, run.world_size, run)
    assert max(loss for loss, _ in ranks) < TOLERANCE
    worst: dict[str, float] = {}
    for _, errors in ranks:
        for name, error in errors.items():
            worst[name] = max(error, worst.get(name, 0.0))
    assert worst.keys() == sharding.huggingface_shapes(run.architecture).keys()
    assert {n: e for n, e in worst.items() if not e < TOLERANCE} == {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", ["qwen", "tied_llama3", "ragged_rows"])
def test_parity_of_other_models(method: str, variant: str) -> None:
    assert_parity(replace(RUN, method=method, model=VARIANTS[variant], world_size=4))


@pytest.mark.parametrize("method", METHODS)
def test_parity_with_checkpointing_and_accumulation(method: str) -> None:
    run = replace(RUN, method=method, world_size=4, sequence_parallel_size=2)
    assert_parity(replace(run, activation_checkpointing=True, gradient_accumulation_steps=2))


@pytest.mark.parametrize("method", ["tp_sp", "odysseus"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_parity_of_kept_gathers(method: str, checkpointing: bool) -> None:
    run = replace(RUN, method=method, world_size=2, regather=False)
    assert_parity(replace(run, activation_checkpointing=checkpointing))


@pytest.mark.parametrize("variant", ["kv_heads_more_than_ranks", "kv_heads_fewer_than_ranks"])
def test_parity_of_yunchangs_exchange(variant: str) -> None:
    run = replace(RUN, method="ulysses", world_size=4, ulysses_all_to_all="yunchang")
    assert_parity(replace(run, model=VARIANTS[variant]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ranks", [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4)])
@pytest.mark.parametrize("variant", ["kv_heads_more_than_ranks", "kv_heads_fewer_than_ranks"])
def test_parity(method: str, ranks: tuple[int, int], variant: str) -> None:
    replicas, size = ranks
    assert_parity(
        replace(
            RUN,
            method=method,
            model=VARIANTS[variant],
            world_size=replicas * size,
            sequence_parallel_size=size,
        )
    )
