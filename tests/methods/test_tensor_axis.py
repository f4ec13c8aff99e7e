"""Ulysses on a second axis that cuts weights: gradients, bytes, dry runs, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from bench.config import checks
from bench.theory import traffic
from odysseus.config.run import ModelOptions, RunConfig
from tests.support.crossed import (
    SHARED,
    TENSOR_MESHES,
    Options,
    check_bytes,
    check_dry_runs,
    check_parity,
    crossed,
)
from tests.support.marks import slow
from tests.support.runs import MODEL, RUN
from tests.support.toggles import LOSS_TILES

OPTIONS: Options = {
    **SHARED,
    "tiles": {"off": {}, "on": {"tiled_mlp_compute": True, **LOSS_TILES}},
    "gathers": {"again": {}, "kept": {"regather": False}},
    "batch": {"one": {}, "two": {"gradient_accumulation_steps": 2}},
}


def any_row(row: Mapping[str, str]) -> bool:
    """Whether a run may have these values: all may occur together."""
    return True


@cache
def every_run() -> list[RunConfig]:
    runs = crossed(OPTIONS, any_row, TENSOR_MESHES)
    return [replace(run, method="ulysses") for run in runs]


BOTH = "2 x tp 2"
EVERY = [mesh if mesh == BOTH else slow(mesh) for mesh in TENSOR_MESHES]


@pytest.mark.parametrize("mesh", EVERY)
def test_parity(mesh: str) -> None:
    check_parity(every_run(), mesh)


@pytest.mark.parametrize("mesh", EVERY)
def test_bytes_equal_theory(mesh: str) -> None:
    check_bytes(every_run(), mesh)


@pytest.mark.parametrize(("mesh", "step"), [(BOTH, 2), *(slow(mesh, 1) for mesh in TENSOR_MESHES)])
def test_a_dry_run_counts_the_same(mesh: str, step: int) -> None:
    check_dry_runs(every_run(), mesh, step)


def test_alone_it_sends_what_tp_sp_does() -> None:
    model = ModelOptions(name_or_path="llama3-8b")
    run = RunConfig(model=model, world_size=8, seq_len=8192, tensor_parallel_size=8)
    alone = traffic.step_traffic(replace(run, method="ulysses"))
    cut = traffic.step_traffic(replace(run, method="tp_sp", tensor_parallel_size=1))
    assert alone.columns == cut.columns


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 3}, "tensor_parallel_size = 3 does not divide world_size / "),
        (
            {"method": "odysseus"},
            "tensor_parallel_size = 2 cuts method = ulysses over a second axis, not odysseus",
        ),
        ({"ulysses_head_chunks": 2}, "ulysses_head_chunks = 2 does not support tensor_parallel"),
        ({"overlap_chunks": 2}, "overlap_chunks = 2 "),
        (
            {"model": replace(MODEL, num_attention_heads=7, num_key_value_heads=7)},
            "tensor_parallel_size = 2 does not fit model.num_attention_heads = 7",
        ),
        (
            {"model": replace(MODEL, intermediate_size=47)},
            "model.intermediate_size = 47 does not divide by tensor_parallel_size = 2",
        ),
        (
            {"sequence_parallel_size": 4},
            "sequence_parallel_size = 4 does not divide world_size = 4 / tensor_parallel_size = 2",
        ),
        (
            {
                "world_size": 8,
                "model": replace(MODEL, num_attention_heads=12, num_key_value_heads=12),
            },
            "sequence_parallel_size = 4 does not fit model.num_attention_heads / "
            "tensor_parallel_size = 6 with ",
        ),
        ({"seq_len": 30}, "sequence_parallel_size x tensor_parallel_size = 4"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    run = replace(RUN, method="ulysses", world_size=4, tensor_parallel_size=2)
    with pytest.raises(ValueError, match=message.replace("(", "\\(")) as refused:
        checks.check(replace(run, **options))
    assert "\n" not in str(refused.value)
