"""Every memory trick, alone and with every other, leaves the mathematics as it is.

Loss, every gradient and the weights after an AdamW step against one plain process, in fp64 at the
tolerance of tests/support/parity.py: tiles and buckets add the same numbers in another order.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from methods import METHODS
from tests.support.covering import (
    FACTORS,
    TRICKS,
    allowed,
    committed,
    covering_array,
    every_pair,
    pairs_of,
    tricks_of,
)
from tests.support.marks import slow
from tests.support.toggles import AHEAD, ALL_ON, BASE, TOGGLES, check_all


def combinations() -> list[dict[str, Any]]:
    """Each toggle alone, each pair that is not two values of one field, and all at once; without
    prefetch, with weights kept for backward, with the overlapping engine and with both, the plain
    run and all."""
    chosen = list(TOGGLES.values())
    for one, other in itertools.combinations(TOGGLES.values(), 2):
        if not any(one.get(key, value) != value for key, value in other.items()):
            chosen.append(one | other)
    ways = ({"zero_prefetch": False}, {"reshard_after_forward": False}, AHEAD)
    ways += (AHEAD | ways[1],)
    return [*chosen, ALL_ON, *ways, *(ALL_ON | way for way in ways)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("world_size", ["2", slow("4")])
def test_tricks_in_pairs(method: str, world_size: str) -> None:
    """Each two values of two tricks occur together in some run of each method.

    Two ranks also have each trick alone, so that no other hides it.
    """
    base = replace(BASE, method=method, world_size=int(world_size))
    rows = [tricks_of(row) for row in committed() if row["world_size"] == world_size]
    alone = [*TOGGLES.values(), *TRICKS["zero"].values()] if world_size == "2" else []
    check_all([replace(base, **tricks) for tricks in (*rows, *alone, ALL_ON, ALL_ON | AHEAD)])


def test_the_covering_array_covers() -> None:
    """The committed rows are allowed and hold every allowed pair of values."""
    rows = committed()
    assert all(allowed(row) and row.keys() == FACTORS.keys() for row in rows)
    pairs = every_pair(FACTORS, allowed)
    assert set().union(*map(pairs_of, rows)) == pairs
    assert set().union(*map(pairs_of, rows[:-1])) != pairs
    assert rows == covering_array(FACTORS, allowed)  # python -m tests.support.covering


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_every_pair_of_tricks(method: str, world_size: int) -> None:
    base = replace(BASE, method=method, world_size=world_size)
    check_all([replace(base, **toggles) for toggles in combinations()])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "backend"),
    # aot_eager has the graphs but no kernels.
    [(method, backend) for method in METHODS for backend in ("aot_eager", "inductor")],
)
def test_compiled_blocks(method: str, backend: str) -> None:
    """Blocks break up around collectives, some of them in place: what comes after them is right."""
    run = replace(BASE, method=method, world_size=2, compile=True, activation_checkpointing=True)
    check_all([run], backend)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_compiled_blocks_with_every_trick(method: str, world_size: int) -> None:
    base = replace(BASE, method=method, world_size=world_size, compile=True)
    runs = [replace(base, **tricks) for tricks in (*TOGGLES.values(), ALL_ON)]
    check_all(runs)


@pytest.mark.parametrize("method", METHODS)
def test_all_tricks_with_replicas_and_accumulation(method: str) -> None:
    run = replace(BASE, method=method, world_size=4, sequence_parallel_size=2, **ALL_ON)
    check_all([replace(run, gradient_accumulation_steps=2)])
