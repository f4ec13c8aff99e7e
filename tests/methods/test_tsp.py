"""Tensor and sequence parallelism on one axis, alone and as a part of other pairs: gradients,
bytes, dry runs, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench.config import checks
from bench.theory import traffic
from methods import tsp
from odysseus.config import pairs
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.model.kernels import TORCH
from odysseus.parallel.mesh import Mesh
from tests.support.crossed import (
    MESHES,
    SHARED,
    Options,
    check_bytes,
    check_dry_runs,
    check_parity,
    crossed,
)
from tests.support.marks import slow
from tests.support.runs import MODEL, RUN
from tests.support.toggles import LOSS_TILES

METHODS = [name for name in pairs.spread_pairs(experts=False) if "tsp" in pairs.parts_of(name)]
OPTIONS: Options = {
    "method": {name: {"method": name} for name in METHODS},
    **SHARED,
    "loss": {"whole": {}, "tiles": LOSS_TILES},
    "ring": {
        "zigzag": {},
        "contiguous": {"ring_order": "contiguous"},
        "gathered": {"ring_backend": "allgather"},
    },
}


def allowed(row: Mapping[str, str]) -> bool:
    """Whether a run may have these values: attention of TSP has no other ring."""
    return not (row.get("method", "").startswith("tsp") and "ring" in row.get("mesh", ""))


@cache
def every_run() -> list[RunConfig]:
    return crossed(OPTIONS, allowed)


EVERY = [mesh if mesh == "2" else slow(mesh) for mesh in MESHES]


@pytest.mark.parametrize("mesh", EVERY)
def test_parity(mesh: str) -> None:
    check_parity(every_run(), mesh)


@pytest.mark.parametrize("mesh", EVERY)
def test_bytes_equal_theory(mesh: str) -> None:
    check_bytes(every_run(), mesh)


@pytest.mark.parametrize(("mesh", "step"), [("2", 4), *(slow(mesh, 1) for mesh in MESHES)])
def test_a_dry_run_counts_the_same(mesh: str, step: int) -> None:
    check_dry_runs(every_run(), mesh, step)


def test_it_sends_what_a_ring_with_zero_does() -> None:
    """Weights that visit are as many bytes as weights that are gathered: of a model in which
    neither pads a row."""
    model = ModelOptions(name_or_path="llama3-8b")
    run = RunConfig(model=model, world_size=8, seq_len=8192, dtype="bf16")
    visited = traffic.step_traffic(replace(run, method="tsp"))
    axes = {"ring_parallel_size": 8, "sequence_parallel_size": 1}
    gathered = traffic.step_traffic(replace(run, method="ulysses", **axes))
    assert visited.total == pytest.approx(gathered.total, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ring_parallel_size": 2}, "ring_parallel_size = 2 is not for method = tsp"),
        ({"tiled_mlp_compute": True}, "tiled_mlp_compute = true is not for method = tsp"),
        ({"compile": True}, "compile = true is not tried with method = tsp"),
        ({"overlap_chunks": 2}, "overlap_chunks = 2 is for MLPs other than tsp"),
        ({"model": replace(MODEL, intermediate_size=47)}, "model.intermediate_size = 47 does not"),
        ({"seq_len": 36}, "seq_len = 36 does not divide by 2 x sequence_parallel_size = 8"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        checks.check(replace(RUN, method="tsp", world_size=4, **options))
    assert "\n" not in str(refused.value)


def test_a_file_cannot_take_its_attention_with_other_tokens() -> None:
    """A method from a file has contiguous tokens, which a zigzag ring would mask wrongly."""
    run = replace(RUN, method="mine.py", world_size=2)
    mesh = SimpleNamespace(sequence=SimpleNamespace(size=2))
    with pytest.raises(ValueError, match="valid: --attention tsp"):
        tsp.attention(run, cast(Mesh, mesh), TORCH)
