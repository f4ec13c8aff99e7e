"""Embedding and head cut by vocabulary: gradients, bytes, dry runs, and which is cheaper."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench import rows
from bench.theory import traffic
from methods import METHODS
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.io.text import Samples
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.crossed import DRY_RUNS, EVERY, check_bytes, check_dry_runs, check_parity
from tests.support.cut_vocabulary import runs as cut_runs
from tests.support.parity import sum_of_losses
from tests.support.ranks import run_ranks
from tests.support.runs import MODEL, RUN
from tests.support.toggles import LOSS_TILES

LLAMA = RunConfig(model=ModelOptions(name_or_path="llama3-8b"), dtype="bf16", world_size=8)


@pytest.mark.parametrize("mesh", EVERY)
def test_parity(mesh: str) -> None:
    check_parity(cut_runs(), mesh)


@pytest.mark.parametrize("mesh", EVERY)
def test_bytes_equal_theory(mesh: str) -> None:
    check_bytes(cut_runs(), mesh)


@pytest.mark.parametrize(("mesh", "step"), DRY_RUNS)
def test_a_dry_run_counts_the_same(mesh: str, step: int) -> None:
    check_dry_runs(cut_runs(), mesh, step)


def own_losses(runs: list[RunConfig]) -> list[float]:
    """Return the sum of this rank's token losses in each run, with logits of up to 1e5."""
    found = []
    for run in runs:
        mesh = make_mesh(torch.device("cpu"), run)
        trainer = Trainer(run, METHODS[run.method], mesh)
        for piece, weight in trainer.local_pieces():
            if piece.name == "lm_head.weight":
                weight.mul_(1e6)
        (batch,) = Samples(run, mesh.replica, mesh.shard, mesh.device).step(0)
        found.append(sum_of_losses(trainer.model, batch).item())
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_returns_the_losses_of_its_own_tokens(method: str) -> None:
    """Also where exponentials of logits overflow, unless all ranks subtract the same largest."""
    whole = replace(RUN, dtype="fp32", method=method, world_size=2)
    runs = [whole, *(replace(whole, vocab_parallel=True, **tiles) for tiles in ({}, LOSS_TILES))]
    for losses in run_ranks(own_losses, 2, runs):
        assert losses[0] > 1e5
        assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [(8, 8, 1), (8, 4, 2), (16, 4, 2), (64, 8, 4)])
def test_auto_sends_the_fewest_bytes(method: str, sizes: tuple[int, int, int], tied: bool) -> None:
    world, n, ring = sizes
    model = replace(LLAMA.model, tie_word_embeddings=tied)
    choices: list[Any] = [False, True] if tied else [False, True, "embedding", "head"]
    chosen = set()
    for length, engine in itertools.product((2**13, 2**17, 2**18, 2**20), ("fused", "checkpoint")):
        base = replace(LLAMA, model=model, method=method, world_size=world, seq_len=length)
        base = replace(base, sequence_parallel_size=n, ring_parallel_size=ring)
        base = replace(base, tiled_loss_engine=engine)
        totals = {c: traffic.step_traffic(replace(base, vocab_parallel=c)).total for c in choices}
        auto = replace(base, vocab_parallel="auto")
        assert traffic.step_traffic(auto).total == min(totals.values()), (length, engine)
        chosen.add(auto.vocabulary_text)
    assert len(chosen) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_parallel": True, "tiled_loss_engine": "torch"},
            "vocab_parallel = true is not for tiled_loss_engine = torch, which needs all rows of "
            "the head; valid: tiled_loss_engine of fused, checkpoint, or "
            "vocab_parallel = embedding",
        ),
        (
            {"vocab_parallel": "head", "model": replace(MODEL, tie_word_embeddings=True)},
            "vocab_parallel = head cuts one of two parts that share a weight, with "
            "model.tie_word_embeddings = true; valid: true, false, auto",
        ),
        (
            {"vocab_parallel": "embedding", "model": replace(MODEL, vocab_size=3)},
            "vocab_parallel = embedding cuts model.vocab_size = 3 over sequence_parallel_size = 4; "
            "valid: at most 3 ranks, or vocab_parallel = false",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(changes: dict[str, Any], message: str) -> None:
    run = replace(RUN, world_size=4, **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        run.check()
    assert replace(run, vocab_parallel="auto").vocabulary_text != str(run.vocab_parallel).lower()


def test_a_row_says_what_auto_has_chosen() -> None:
    run = replace(RUN, world_size=4, vocab_parallel="auto")
    assert rows.identity(run)["vocab_parallel"] == run.vocabulary_text != "false"
    assert rows.identity(replace(run, vocab_parallel=False))["vocab_parallel"] is None
    assert rows.identity(replace(run, world_size=1))["vocab_parallel"] is None
