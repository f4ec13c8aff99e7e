"""Comparison of one step of a method with the single-process reference, in fp64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from methods import method_of
from odysseus.config.architecture import Architecture
from odysseus.config.run import RunConfig
from odysseus.io.text import Batch, Samples
from odysseus.model.decoder import CausalLM, reference_model
from odysseus.model.experts import MixtureOfExperts
from odysseus.parallel import sharding
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.ranks import run_ranks

TOLERANCE = 1e-12


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
        for piece, view in sharding.local_pieces(model, run.architecture):
            view.copy_(piece.of(whole[piece.name]))
    return model


def reference_gradients(run: RunConfig) -> tuple[float, float, dict[str, torch.Tensor]]:
    """The loss, gradient norm and whole gradients of one step, in one process."""
    model = reference(run)
    alone = replace(
        run,
        world_size=1,
        sequence_parallel_size=0,
        tensor_parallel_size=1,
        ring_parallel_size=1,
        gradient_accumulation_steps=run.gradient_accumulation_steps * run.data_parallel_size,
    )
    batches = Samples(alone, replica=0, shard=0, device=torch.device("cpu")).step(0)
    with router_logits(model) as logits:
        losses = [sum_of_losses(model, batch) for batch in batches]
    loss = torch.stack(losses).sum() / sum((batch.labels != -100).sum() for batch in batches)
    per_step = len(logits) // run.gradient_accumulation_steps
    for first in range(0, len(logits), per_step or 1):
        of_step = router_losses(torch.cat(logits[first : first + per_step]), run.architecture)
        loss = loss + of_step / run.gradient_accumulation_steps
    loss.backward()
    square = sum(float(p.grad.square().sum()) for p in model.parameters())
    gradients = {
        name: torch.zeros(shape, dtype=run.master_dtype)
        for name, shape in sharding.huggingface_shapes(run.architecture).items()
    }
    for name, parameter in model.named_parameters():
        of = sharding.pieces(name, run.architecture)
        for piece, view in sharding.cut_rows(parameter.grad, of):
            piece.of(gradients[piece.name]).copy_(view)
    return loss.item(), square**0.5, gradients


@contextmanager
def router_logits(model: CausalLM) -> Iterator[list[torch.Tensor]]:
    """Collect the logits of every router and batch, [T, E] each."""
    found: list[torch.Tensor] = []
    routers = [m.gate for m in model.modules() if isinstance(m, MixtureOfExperts)]
    hooks = [r.register_forward_hook(lambda *call: found.append(call[-1])) for r in routers]
    yield found
    for hook in hooks:
        hook.remove()


def router_losses(logits_TE: torch.Tensor, a: Architecture) -> torch.Tensor:
    """The losses of one micro step, of the logits of all blocks and all ranks' tokens."""
    scores_TE = logits_TE.sigmoid() if a.scoring_func == "sigmoid" else logits_TE.softmax(1)
    chosen_TK = scores_TE.topk(a.num_experts_per_tok).indices
    share_E = F.one_hot(chosen_TK, a.num_experts).sum(1).to(logits_TE.dtype).mean(0)
    probability_E = (scores_TE / scores_TE.sum(1, keepdim=True)).mean(0)
    balance = a.num_experts * (share_E * probability_E).sum()
    squares = logits_TE.logsumexp(1).square().mean()
    return a.router_aux_loss_coef * balance + a.router_z_loss_coef * squares


def sum_of_losses(model: CausalLM, batch: Batch) -> torch.Tensor:
    """Sum the losses of packed documents, each computed by itself."""
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
    """Compare one step on this rank with the reference: loss error, largest gradient error by
    tensor."""
    torch.set_num_threads(1)
    mesh = make_mesh(torch.device("cpu"), run)
    trainer = Trainer(run, method_of(run.method), mesh)
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
    """Assert that every rank's errors are rounding errors.

    Args:
        on_rank: Like :func:`compare`.
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
