"""Every method equals the single-process reference: the loss and every gradient, in fp64.

The tolerance is 1e-12 absolute on gradients of order 1e-2: fp64 sums in another order differ by
about 1e-16; a missing or doubled contribution, by 1e-4 and more.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from methods import METHODS
from tests.support.parity import assert_parity
from tests.support.runs import RUN, VARIANTS


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
