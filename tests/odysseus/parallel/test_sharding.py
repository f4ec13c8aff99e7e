"""Initial weights depend on the seed alone, and every element has one owner in the world."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from methods import METHODS
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.model.decoder import reference_model
from odysseus.parallel import sharding
from odysseus.parallel.cuts import Cuts, Place
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.ranks import run_ranks

WIDE = ModelOptions(
    vocab_size=259,  # Ragged: neither 2 nor 4 ranks get equal shards.
    hidden_size=36,
    intermediate_size=40,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=6,
    tie_word_embeddings=True,
)
MODELS = {
    "kv_heads_for_all": WIDE,
    "kv_heads_fewer_than_ranks": replace(
        WIDE,
        num_key_value_heads=1,
        attention_bias=True,
        attention_output_bias=True,
        use_qk_norm=True,
        tie_word_embeddings=False,
    ),
}
RANKS = [(1, 1), (2, 2), (1, 4)]  # (replicas, size of the sequence axis)
Interval = tuple[int, int]
Held = tuple[str, Interval, Interval, bool, bytes]


def single_process(run: RunConfig) -> dict[str, Tensor]:
    """Every whole tensor, from the reference model alone."""
    model = reference_model(run.architecture)
    held = list(sharding.local_pieces(model, run.architecture))
    sharding.initialize(iter(held), run.seed)
    return {piece.name: view for piece, view in held}


def held_by_method(run: RunConfig) -> dict[tuple[str, str], list[Held]]:
    """Name, rows, columns, owned and fp32 values of all local pieces, by method and model."""
    held = {}
    for method in METHODS.values():
        for label, model in MODELS.items():
            cell = replace(run, method=method.name, model=model)
            a = cell.architecture
            mesh = make_mesh(torch.device("cpu"), cell)
            cuts = mesh.cuts(method.split)
            local = sharding.local_pieces(Trainer(cell, method, mesh).model, a, cuts)
            held[method.name, label] = [
                (p.name, p.rows, p.columns, p.owned, view.numpy().tobytes()) for p, view in local
            ]
    return held


@lru_cache
def world(replicas: int, size: int) -> list[dict[tuple[str, str], list[Held]]]:
    run = RunConfig(world_size=replicas * size, sequence_parallel_size=size)
    return run_ranks(held_by_method, run.world_size, run)


def pieces_of_world(
    ranks: tuple[int, int], method: str, model: str
) -> Iterator[tuple[str, tuple[slice, slice], bool, np.ndarray]]:
    """(name, rectangle, owned, values) of every piece that any rank holds."""
    for rank in world(*ranks):
        for name, rows, columns, owned, values in rank[method, model]:
            rectangle = (slice(*rows), slice(*columns))
            height, width = rows[1] - rows[0], columns[1] - columns[0]
            array = np.frombuffer(values, dtype=np.float32).reshape(height, width)
            yield name, rectangle, owned, array


def as_matrices(whole: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: x.numpy().reshape(len(x), -1) for name, x in whole.items()}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ranks", RANKS)
def test_shards_are_the_single_process_weights(
    ranks: tuple[int, int], method: str, model: str
) -> None:
    whole = as_matrices(single_process(RunConfig(model=MODELS[model])))
    covered = {name: np.zeros(x.shape, bool) for name, x in whole.items()}
    for name, rectangle, _, values in pieces_of_world(ranks, method, model):
        assert values.tobytes() == whole[name][rectangle].tobytes(), name
        covered[name][rectangle] = True
    assert [name for name, x in covered.items() if not x.all()] == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ranks", RANKS)
def test_every_element_has_one_owner(ranks: tuple[int, int], method: str, model: str) -> None:
    run = RunConfig(model=MODELS[model])
    shapes = {name: x.shape for name, x in as_matrices(single_process(run)).items()}
    owners = {name: np.zeros(shape, int) for name, shape in shapes.items()}
    copies = {name: np.zeros(shape, int) for name, shape in shapes.items()}
    for name, rectangle, owned, _ in pieces_of_world(ranks, method, model):
        owners[name][rectangle] += owned
        copies[name][rectangle] += 1
    shared = max(1, ranks[1] // run.architecture.num_key_value_heads)
    for name in shapes:
        assert np.unique(owners[name]).tolist() == [1], name
        # Only kv heads that a method cuts into fewer parts than ranks are held more than once.
        is_cut = any(f".{cut}." in name for cut in METHODS[method].split)
        is_key_value = "k_proj" in name or "v_proj" in name
        expected = shared if is_cut and is_key_value else 1
        assert np.unique(copies[name]).tolist() == [expected], name


def test_two_kv_heads_of_four_ranks_are_owned_by_the_first_of_each_pair() -> None:
    a = replace(MODELS["kv_heads_fewer_than_ranks"], num_key_value_heads=2)
    architecture = RunConfig(model=a).architecture
    split = METHODS["tp"].split
    name = "model.layers.0.self_attn.qkv_proj.weight"
    cuts = [Cuts(split, Place(4, rank)) for rank in range(4)]
    held = [sharding.pieces(name, architecture, of_rank)[1] for of_rank in cuts]
    assert [(p.rows, p.owned) for p in held] == [
        ((0, 6), True),
        ((0, 6), False),
        ((6, 12), True),
        ((6, 12), False),
    ]


def test_another_seed_gives_other_weights() -> None:
    run = RunConfig(model=MODELS["kv_heads_fewer_than_ranks"])
    first, again, other = (single_process(replace(run, seed=seed)) for seed in (0, 0, 1))
    for name, x in first.items():
        assert torch.equal(x, again[name])
        # Vectors are ones and zeros; drawn numbers agree by chance hardly once in a million.
        same = (x == other[name]).double().mean().item()
        assert same == 1 if x.dim() == 1 else same < 1e-3


def test_distribution() -> None:
    run = RunConfig(model=replace(MODELS["kv_heads_fewer_than_ranks"], num_hidden_layers=2))
    whole = single_process(run)
    for name, x in whole.items():
        if x.dim() == 1:
            assert torch.equal(x, torch.full_like(x, 0.0 if name.endswith("bias") else 1.0))
        else:
            # Five standard errors of the mean and of the standard deviation of n draws.
            n = x.numel()
            assert abs(x.mean().item()) < 5 * 0.02 / n**0.5
            assert abs(x.std().item() - 0.02) < 5 * 0.02 / (2 * n) ** 0.5
    # Tensors of one shape are drawn apart: two layers, two projections, two blocks of rows.
    gate, up = (f"model.layers.{{}}.mlp.{name}_proj.weight" for name in ("gate", "up"))
    assert not (whole[gate.format(0)] == whole[gate.format(1)]).any()
    assert not (whole[gate.format(0)] == whole[up.format(0)]).any()
    table = whole["model.embed_tokens.weight"]
    assert not (table[:3] == table[sharding._ROWS_PER_DRAW :]).any()


def test_only_the_needed_blocks_of_rows_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, columns, drawn = (1000, 8), (2, 5), []
    block = sharding._ROWS_PER_DRAW
    rows = (block + 10, 2 * block + 10)
    whole = torch.empty(shape)
    sharding.initialize(iter([(sharding.Piece("w", shape, (0, 1000), (0, 8)), whole)]), seed=3)

    plain_randn = torch.randn

    def randn(*size: int, generator: torch.Generator) -> Tensor:
        drawn.append(size)
        return plain_randn(*size, generator=generator)

    monkeypatch.setattr(torch, "randn", randn)
    piece = sharding.Piece("w", shape, rows, columns)
    view = torch.empty(block, 3)
    sharding.initialize(iter([(piece, view)]), seed=3)
    assert torch.equal(view, piece.of(whole))
    assert drawn == [(block, 8), (block, 8)]


def test_threads_draw_the_same_weights() -> None:
    """Nor does a thread that fails go unnoticed."""
    shape, threads = (3000, 8), torch.get_num_threads()
    piece = sharding.Piece("w", shape, (0, 3000), (0, 8))
    one, four = torch.empty(shape), torch.empty(shape)
    try:
        for number, view in ((1, one), (4, four)):
            torch.set_num_threads(number)
            sharding.initialize([(piece, view)], seed=3)
        with pytest.raises(RuntimeError, match="size"):
            sharding.initialize([(piece, torch.empty(7, 7))], seed=3)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, four)
