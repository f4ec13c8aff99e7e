"""Tiled losses against all logits at once: value, gradients, masks, precision and memory.

fp64 sums in another order differ by about 1e-16 of numbers of order 10: the tolerance is 1e-12.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.meters.memory import MemoryMeter
from methods import METHODS
from odysseus.config.run import RunConfig
from odysseus.io.text import Batch, Samples
from odysseus.model import loss
from odysseus.model.loss import IGNORED_LABEL, whole_logits
from odysseus.parallel import sharding
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.parity import reference
from tests.support.ranks import run_ranks
from tests.support.runs import RUN

TOLERANCE = 1e-12
TOKENS, WIDTH, VOCABULARY = 38, 16, 96
ENGINES = {
    "fused": loss.fused,
    "checkpoint": loss.checkpointed,
    "torch": loss.linear_cross_entropy,
}


def inputs(dtype: torch.dtype, tokens: int = TOKENS, seed: int = 0) -> list[Tensor]:
    """hidden_TD, weight_VD and labels_T, logits of order 1."""
    made = torch.Generator().manual_seed(seed)
    hidden_TD = torch.randn(tokens, WIDTH, generator=made, dtype=torch.float64)
    weight_VD = torch.randn(VOCABULARY, WIDTH, generator=made, dtype=torch.float64) / WIDTH**0.5
    labels_T = torch.randint(VOCABULARY, (tokens,), generator=made)
    return [hidden_TD.to(dtype), weight_VD.to(dtype), labels_T]


def value_and_gradients(
    engine: Any, given: list[Tensor], scale: float = 1.0, **options: int
) -> tuple[Tensor, ...]:
    hidden_TD, weight_VD = (x.clone().requires_grad_() for x in given[:2])
    value = engine(hidden_TD, weight_VD, given[2], **options)
    value.backward(torch.tensor(scale, dtype=value.dtype))
    assert hidden_TD.grad is not None
    assert weight_VD.grad is not None
    return value.detach(), hidden_TD.grad, weight_VD.grad


LABELS = {
    "none masked": slice(0, 0),
    "some masked": slice(3, TOKENS, 4),
    "a masked tile": slice(8, 16),
    "a masked last tile": slice(32, TOKENS),
    "one label": slice(1, TOKENS),
}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("masked", LABELS)
@pytest.mark.parametrize("tile", [1, 8, TOKENS, 100])
def test_value_and_gradients(name: str, masked: str, tile: int) -> None:
    """38 tokens in tiles of 8 end in one of 6."""
    given = inputs(torch.float64)
    given[2][LABELS[masked]] = IGNORED_LABEL
    expected = value_and_gradients(whole_logits, given)
    for found, wanted in zip(
        value_and_gradients(ENGINES[name], given, tile=tile), expected, strict=True
    ):
        assert found.dtype == wanted.dtype
        assert (found - wanted).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_shard_without_labels_counts_nothing(name: str, dtype: torch.dtype) -> None:
    given = inputs(dtype)
    given[2].fill_(IGNORED_LABEL)
    for found in value_and_gradients(ENGINES[name], given, tile=8):
        assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_gradients_are_exact_under_any_scale(name: str, scale: float) -> None:
    given = inputs(torch.float64)
    expected = value_and_gradients(whole_logits, given)
    value, *gradients = value_and_gradients(ENGINES[name], given, scale, tile=8)
    assert (value - expected[0]).abs() < TOLERANCE
    for found, wanted in zip(gradients, expected[1:], strict=True):
        assert (found - scale * wanted).abs().max() < scale * TOLERANCE


def test_the_weights_gradient_in_bf16_sums_in_fp32() -> None:
    """All logits at once is one product, off by bf16's rounding of the logits' gradient and of the
    result. 256 tiles add the rounding of each product, a quarter more; a bf16 sum of them, tenfold.
    """
    given = inputs(torch.bfloat16, tokens=2048)
    exact = value_and_gradients(whole_logits, [given[0].double(), given[1].double(), given[2]])[2]

    def error(engine: Any, **options: int) -> float:
        found = value_and_gradients(engine, given, **options)[2]
        assert found.dtype == torch.bfloat16
        return float((found - exact).norm() / exact.norm())

    assert error(loss.fused, tile=8) <= 1.25 * error(whole_logits)


@pytest.mark.parametrize("name", ["fused", "checkpoint"])
def test_the_loss_of_bf16_tiles_sums_in_fp32(name: str) -> None:
    """2,048 token losses of about 5 are 10,000: a bf16 sum of tiles has steps of 64 there."""
    given = inputs(torch.bfloat16, tokens=2048)
    exact = value_and_gradients(whole_logits, [given[0].double(), given[1].double(), given[2]])[0]
    value = value_and_gradients(ENGINES[name], given, tile=8)[0]
    assert value.dtype == torch.float32
    assert abs(float(value - exact)) < 1e-3 * float(exact) / 2


@pytest.mark.parametrize("tile", [4, 64])
def test_fused_holds_one_tile_of_logits(tile: int) -> None:
    """The peak is at a tile's softmax minus one-hot: its fp32 logits, in their place.

    Beside them the gradients of hidden and weight and the loss; of a token its label (8 bytes),
    the picked logit, the row's sum, the one and minus one (4 each), and whether it counts (1).
    """
    hidden_TD, weight_VD, labels_T = inputs(torch.float32, tokens=256)
    hidden_TD.requires_grad_()
    weight_VD.requires_grad_()
    with MemoryMeter() as meter:
        loss.fused(hidden_TD, weight_VD, labels_T, tile).backward()
    gradients = hidden_TD.nbytes + weight_VD.nbytes + 4
    assert meter.peak().bytes == gradients + tile * (4 * VOCABULARY + 8 + 4 * 4 + 1)
    with MemoryMeter() as meter:
        whole_logits(hidden_TD, weight_VD, labels_T).backward()
    assert meter.peak().bytes > 2 * 4 * len(labels_T) * VOCABULARY


def test_a_second_backward_adds_the_same_gradients() -> None:
    """Backward scales the kept gradients in place, unless its graph is kept."""
    hidden_TD, weight_VD, labels_T = inputs(torch.float64)
    hidden_TD.requires_grad_()
    value = loss.fused(hidden_TD, weight_VD.requires_grad_(), labels_T, 8)
    (value * 3).backward(retain_graph=True)
    once = [x.grad.clone() for x in (hidden_TD, weight_VD) if x.grad is not None]
    (value * 3).backward()
    for x, gradient in zip((hidden_TD, weight_VD), once, strict=True):
        assert x.grad is not None
        assert torch.equal(x.grad, 2 * gradient)


def test_a_frozen_head_costs_no_gradient() -> None:
    hidden_TD, weight_VD, labels_T = inputs(torch.float64)
    both = [x.clone().requires_grad_() for x in (hidden_TD, weight_VD)]
    loss.fused(*both, labels_T, 8).backward()
    hidden_TD.requires_grad_()
    with MemoryMeter() as meter:
        loss.fused(hidden_TD, weight_VD, labels_T, 8).backward()
    assert both[0].grad is not None
    assert hidden_TD.grad is not None
    assert torch.equal(hidden_TD.grad, both[0].grad)
    assert meter.peak().bytes < hidden_TD.nbytes + weight_VD.nbytes


@pytest.mark.parametrize(
    ("asked", "local_tokens", "tile"),
    [(4 * 256 * 7, 64, 7), (4 * 256 * 7 + 1023, 64, 7), (1, 64, 1), (2**30, 64, 64)],
)
def test_a_tile_is_what_its_bytes_hold(asked: int, local_tokens: int, tile: int) -> None:
    """The tiny preset's 256 logits of a token are 1024 bytes in fp32."""
    run = RunConfig(seq_len=local_tokens, tiled_loss_bytes=asked)
    assert loss.loss_tile_tokens(run) == tile


def masked_steps(runs: list[RunConfig]) -> list[str | tuple[float, float]]:
    """Return, per run, the error message of a step without labels, and two errors of another step.

    In that other step rank 0 has no labels. The reference counts only the second half of every
    sample, which rank 1 holds.
    """
    found: list[Any] = []
    run = runs[0]
    mesh = make_mesh(torch.device("cpu"), run)
    expected_loss, expected = _reference_of_second_half(run)
    for run in runs:
        trainer = Trainer(run, METHODS[run.method], mesh)
        (batch,) = Samples(run, mesh.replica, mesh.shard, mesh.device).step(0)
        nothing = replace(batch, labels=torch.full_like(batch.labels, IGNORED_LABEL))
        try:
            found.append(str(trainer.forward_backward([nothing])))
        except ValueError as error:
            found.append(str(error))
        mine = nothing if mesh.sequence.rank == 0 else batch
        value = trainer.forward_backward([mine])
        worst = 0.0
        for piece, view in trainer.gradients():
            worst = max(worst, float((view - piece.of(expected[piece.name])).abs().max()))
        found.append((abs(float(value) - expected_loss), worst))
    return found


def _reference_of_second_half(run: RunConfig) -> tuple[float, dict[str, Tensor]]:
    model, alone = reference(run), replace(run, world_size=1)
    (batch,) = Samples(alone, 0, 0, torch.device("cpu")).step(0)
    labels = batch.labels.clone()
    labels[:, : run.seq_len // 2] = IGNORED_LABEL
    half = Batch(batch.input_ids, labels, batch.position_ids)
    counted = model(half.input_ids, half.position_ids, labels) / (labels != IGNORED_LABEL).sum()
    counted.backward()
    shapes = sharding.huggingface_shapes(run.architecture)
    whole = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for name, parameter in model.named_parameters():
        of = sharding.pieces(name, run.architecture)
        for piece, view in sharding.cut_rows(parameter.grad, of):
            piece.of(whole[piece.name]).copy_(view)
    return float(counted), whole


def test_steps_with_masked_ranks() -> None:
    base = replace(RUN, world_size=2, tiled_loss_bytes=4 * 512 * 5)
    runs = [replace(base, method=method) for method in METHODS]
    runs += [replace(base, tiled_loss_engine=engine) for engine in ("checkpoint", "torch")]
    runs += [replace(base, tiled_loss_compute=False)]
    for rank in run_ranks(masked_steps, 2, runs):
        for told, errors in zip(rank[::2], rank[1::2], strict=True):
            assert told == ("all labels of a step are -100, on every rank; its loss is undefined")
            assert max(errors) < TOLERANCE
