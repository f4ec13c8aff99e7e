"""Training loops of any order on prepared models: the same losses and gradients as a plain model.

Each program is compared with Transformers' own model in one process, in fp64 at 1e-10.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.hf_models import ALL, Case
from tests.support.hf_programs import (
    FROZEN,
    SHAPES,
    Operation,
    Program,
    differences,
    kept,
    trained_again_in_bf16,
)
from tests.support.marks import slow
from tests.support.ranks import run_ranks

OFFLOAD = {"activation_checkpoint_cpu_offload": True}
TOGGLES: dict[str, dict[str, Any]] = {
    "none": {},
    "offload": OFFLOAD,
    "checkpoint": {"activation_checkpointing": True},
    "all": ALL,
    "host": ALL | {"parameter_offload": "cpu"},
}
LONG, SHORT, TWO = 0, 2, 1
"""Indices of SHAPES: one sample of 48 tokens, one of 32, two of 48."""

PROGRAMS: dict[str, list[Operation]] = {
    "two forwards, then backwards in their order": [
        *[("forward", LONG, 1), ("forward", LONG, 2), ("backward", 0, False)],
        ("backward", 0, False),
    ],
    "the last forward's backward first": [
        *[("forward", LONG, 1), ("forward", LONG, 2), ("backward", 1, False)],
        ("backward", 0, False),
    ],
    "a shorter batch": [
        *[("forward", LONG, 1), ("backward", 0, False), ("forward", SHORT, 2)],
        ("backward", 0, False),
    ],
    "fewer samples, both waiting": [
        *[("forward", TWO, 1), ("forward", LONG, 2), ("backward", 0, False)],
        ("backward", 0, False),
    ],
    "lower layers frozen": [
        *[("freeze", "embed_tokens"), ("freeze", "layers.0."), ("freeze", "layers.1.")],
        *[("forward", LONG, 1), ("backward", 0, False), ("forward", LONG, 2)],
        ("backward", 0, False),
    ],
    "a loss that is dropped": [
        *[("forward", LONG, 1), ("drop", 0), ("forward", LONG, 2), ("backward", 0, False)],
    ],
    "backward twice": [("forward", LONG, 1), ("backward", 0, True), ("backward", 0, False)],
    "an evaluation between": [
        *[("forward", LONG, 1), ("evaluate", TWO, 2), ("backward", 0, False)],
    ],
    "an exception in the middle": [
        *[("forward", LONG, 1), ("stop", 1), ("forward", LONG, 2), ("backward", 0, False)],
        ("backward", 0, False),
    ],
    "frozen, a step, unfrozen": [
        *[("freeze", "layers.1."), ("forward", LONG, 1), ("backward", 0, False), ("step",)],
        *[("unfreeze", "layers.1."), ("forward", LONG, 2), ("backward", 0, False)],
    ],
    "unfrozen again": [
        *[("forward", LONG, 1), ("backward", 0, False), ("freeze", "layers.1."), ("step",)],
        *[("forward", LONG, 2), ("backward", 0, False), ("unfreeze", "layers.1.")],
        *[("forward", LONG, 1), ("backward", 0, False)],
    ],
}


def check(programs: list[Program], world_size: int) -> None:
    for of_rank in run_ranks(differences, world_size, programs):
        for program, found in zip(programs, of_rank, strict=True):
            wrong = {name: error for name, error in found.items() if not error < 1e-10}
            assert wrong == {}, program


@pytest.mark.parametrize(
    ("toggles", "world_size"),
    [
        *[("offload", 1), ("all", 2)],
        *(slow(name, size) for name in TOGGLES for size in (1, 2, 4)),
    ],
)
def test_loops_that_people_write(toggles: str, world_size: int) -> None:
    case = Case("llama", toggles=TOGGLES[toggles])
    check([Program(case, operations) for operations in PROGRAMS.values()], world_size)


def test_the_caller_may_checkpoint() -> None:
    """Transformers' own function recomputes, around this project's tiles."""
    tiles = {"tiled_mlp_compute": True, "tiled_loss_compute": True}
    operations = PROGRAMS["two forwards, then backwards in their order"]
    check([Program(Case("llama", toggles=t), operations, True) for t in ({}, tiles)], 2)


@pytest.mark.parametrize(
    ("toggles", "world_size", "more"), [("all", 1, 5), slow("all", 1, 45), slow("offload", 2, 15)]
)
def test_nothing_is_left_behind(toggles: str, world_size: int, more: int) -> None:
    """Tensors and host buffers are as many, of as many bytes, after more steps as after 5."""
    for of_rank in run_ranks(kept, world_size, TOGGLES[toggles], more):
        for loop, (after_5, after_more) in of_rank.items():
            assert after_more == after_5, loop
            assert after_5[2] > 0, loop


@pytest.mark.parametrize("part", ["layers.1.", "lm_head"])
def test_what_was_frozen_at_first_is_trained_again_in_bf16(part: str) -> None:
    """Bit for bit as if it had never been frozen."""
    assert run_ranks(trained_again_in_bf16, 2, part) == [0.0, 0.0]


SEEDS, GRAPHS = st.integers(0, 9), st.integers(0, 3)
BATCHES = st.sampled_from(range(len(SHAPES)))
OPERATIONS = st.one_of(
    st.tuples(st.just("forward"), BATCHES, SEEDS),
    st.tuples(st.just("backward"), GRAPHS, st.booleans()),
    st.tuples(st.just("drop"), GRAPHS),
    st.tuples(st.just("evaluate"), BATCHES, SEEDS),
    st.tuples(st.just("stop"), st.integers(0, 2)),
    st.tuples(st.sampled_from(("freeze", "unfreeze")), st.sampled_from(FROZEN)),
    st.just(("step",)),
)
CASES = st.builds(
    Case,
    st.sampled_from(("llama", "qwen3", "gemma")),
    attention=st.just("ulysses"),
    toggles=st.sampled_from([*TOGGLES.values()]),
)


@pytest.mark.parametrize(("world_size", "count"), [(1, 8), slow(1, 60), slow(2, 60)])
def test_any_program(world_size: int, count: int) -> None:
    @settings(max_examples=count, deadline=None, derandomize=True)
    @given(case=CASES, operations=st.lists(OPERATIONS, min_size=3, max_size=12))
    def agrees(case: Case, operations: list[Operation]) -> None:
        check([Program(case, operations)], world_size)

    agrees()
