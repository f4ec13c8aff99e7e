"""Pairs of an attention and an MLP: gradients, bytes and dry runs of those without a name, and what
each flag means."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from bench.config import checks
from bench.theory import traffic
from methods import METHODS, method_of
from methods.pairs import ATTENTIONS, MLPS, pair
from odysseus.config import pairs
from odysseus.config.run import ModelOptions, RunConfig
from tests.support import toggles
from tests.support.crossed import (
    DRY_RUNS,
    EVERY,
    SHARED,
    Options,
    check_bytes,
    check_dry_runs,
    check_parity,
    crossed,
)
from tests.support.paths import ROOT
from tests.support.runs import MODEL, RUN
from tests.support.toggles import LOSS_TILES

UNNAMED = [
    name
    for name in pairs.every_pair()
    if name not in METHODS and not {"local", "tsp", "expert"} & {*pairs.parts_of(name)}
]
DENSE = [mlp for mlp in MLPS if mlp != "expert"]
OPTIONS: Options = {
    "method": {name: {"method": name} for name in UNNAMED},
    **SHARED,
    "tiles": {"off": {}, "on": {"tiled_mlp_compute": True, **LOSS_TILES}},
    "gathers": {"again": {}, "kept": {"regather": False}},
    "chunks": {"one": {}, "two": {"overlap_chunks": 2}},
}


def allowed(row: Mapping[str, str]) -> bool:
    """Whether a run may have these values: chunks are of cut attention, and not of tiles."""
    in_tiles = row.get("tiles") == "on" or row.get("method", "").startswith("ulysses")
    return not (in_tiles and row.get("chunks") == "two")


@cache
def every_run() -> list[RunConfig]:
    return crossed(OPTIONS, allowed)


@pytest.mark.parametrize("mesh", EVERY)
def test_parity(mesh: str) -> None:
    check_parity(every_run(), mesh)


@pytest.mark.parametrize("mesh", EVERY)
def test_bytes_equal_theory(mesh: str) -> None:
    check_bytes(every_run(), mesh)


@pytest.mark.parametrize(("mesh", "step"), DRY_RUNS)
def test_a_dry_run_counts_the_same(mesh: str, step: int) -> None:
    check_dry_runs(every_run(), mesh, step)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_the_pair_of_its_parts(name: str) -> None:
    method, of_parts = METHODS[name], pair(name)
    assert method_of(name) is method
    for field in ("name", "attention", "mlp", "split", "replicated", "positions"):
        assert getattr(method, field) == getattr(of_parts, field), field


@pytest.mark.parametrize("mlp", DENSE)
def test_local_attention_is_that_of_one_rank(mlp: str) -> None:
    run = replace(RUN, world_size=2, ring_parallel_size=2, attention="local", mlp=mlp)
    assert run.method == f"local+{mlp}"
    toggles.check_all([run])
    with pytest.raises(ValueError, match=r"attention local computes on a rank's own tokens"):
        checks.check(replace(run, ring_parallel_size=1))


def test_heads_may_be_uneven() -> None:
    model = replace(MODEL, num_attention_heads=6, num_key_value_heads=2)
    runs = [replace(RUN, world_size=4, model=model, method=f"ulysses+{mlp}") for mlp in DENSE]
    for run in runs:
        checks.check(run)
    toggles.check_all(runs)


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({"attention": "ulysses", "mlp": "tp_sp"}, "ulysses+tp_sp"),
        ({"attention": "ulysses", "mlp": "zero"}, "ulysses"),
        ({"attention": "tp_sp", "mlp": "zero"}, "odysseus"),
        ({"method": "tp", "mlp": "zero"}, "tp+zero"),
        ({"method": "tp_sp", "attention": "ulysses"}, "ulysses+tp_sp"),
        ({"method": "peer:megatron_tp", "attention": "tp", "mlp": "tp"}, "tp"),
        ({"method": "ulysses+tp_sp"}, "ulysses+tp_sp"),
        ({"method": "tp_sp+zero"}, "odysseus"),
        ({"method": "peer:megatron_tp"}, "peer:megatron_tp"),
    ],
)
def test_flags_name_a_pair(given: dict[str, Any], method: str) -> None:
    run = RunConfig(**given)
    assert (run.method, run.attention, run.mlp) == (method, "own", "own")
    assert replace(run, method="tp").method == "tp"


def test_one_part_of_something_else_cannot_be_replaced() -> None:
    message = "mlp = zero cannot replace that of method = mine.py; valid: one of tp, tp_sp, ulysses"
    with pytest.raises(ValueError, match=re.escape(message)):
        RunConfig(method="mine.py", mlp="zero")


PRESETS = {
    "Llama-3-8B": "llama3-8b",
    "Llama-3-70B": "llama3-70b",
    "Qwen3-32B": "qwen3-32b",
    "Llama-2-7B (no shared kv heads)": "llama2-7b",
}


def test_the_page_says_which_pair_sends_least() -> None:
    page = (ROOT / "docs/pairs.md").read_text()
    table = page.partition("| model | ranks |")[2].partition("\n\n")[0]
    lines = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]
    assert len(lines) == 6
    for name, ranks, *stretches in lines:
        model = ModelOptions(name_or_path=PRESETS[name])
        run = RunConfig(model=model, world_size=int(ranks), dtype="bf16", vocab_parallel=True)
        sent = {pair: traffic.line(replace(run, method=pair)) for pair in [*METHODS, *UNNAMED]}
        found = traffic.lowest(sent, run.seq_len_unit)
        ends = [int(text.split()[2].replace(",", "")) for text in stretches if "up to" in text]
        assert [math.ceil(length) - 1 for length, _ in found[1:]] == ends
        pairs_shown = ["tp", "ulysses+tp_sp", "ulysses"]
        shown = [p for p, text in zip(pairs_shown, stretches, strict=True) if text != "nowhere"]
        assert [pair for _, pair in found] == shown


def test_the_options_name_all_parts() -> None:
    assert (tuple(ATTENTIONS), tuple(MLPS)) == (pairs.ATTENTIONS, pairs.MLPS)
    assert pairs.NAMED.keys() == {*METHODS, "tsp"}
