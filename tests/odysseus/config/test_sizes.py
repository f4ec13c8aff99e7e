"""Ranks, heads and tokens divide among the axes, or the refusal names the valid sizes."""

from __future__ import annotations

import pytest

from odysseus.config.run import RunConfig
from odysseus.config.sizes import divisors
from tests.support.refusals import refusal

RINGS = {
    "ring": (
        RunConfig(world_size=4, ring_parallel_size=3),
        "ring_parallel_size = 3 does not divide world_size = 4; valid: [1, 2, 4]",
    ),
    "ring larger than the world": (
        RunConfig(world_size=2, ring_parallel_size=4),
        "ring_parallel_size = 4 does not divide world_size = 2; valid: [1, 2]",
    ),
    "what the ring leaves": (
        RunConfig(world_size=8, ring_parallel_size=4, sequence_parallel_size=4),
        "sequence_parallel_size = 4 does not divide world_size = 8 / ring_parallel_size = 4; "
        "valid: [1, 2]",
    ),
    "heads beside a ring": (
        RunConfig(world_size=6, ring_parallel_size=2),
        "sequence_parallel_size = 3 does not fit model.num_attention_heads = 8 "
        "with model.num_key_value_heads = 4; valid: [1]; "
        "method = ulysses also takes others",
    ),
    "zigzag": (
        RunConfig(world_size=4, ring_parallel_size=2, seq_len=1020),
        "seq_len = 1020 does not divide by 2 x ring_parallel_size x sequence_parallel_size = 8; "
        "nearest valid: 1016 or 1024",
    ),
    "contiguous": (
        RunConfig(world_size=4, ring_parallel_size=2, ring_order="contiguous", seq_len=1022),
        "seq_len = 1022 does not divide by ring_parallel_size x sequence_parallel_size = 4; "
        "nearest valid: 1020 or 1024",
    ),
}


@pytest.mark.parametrize("name", RINGS)
def test_refused_rings(name: str) -> None:
    run, message = RINGS[name]
    assert refusal(run) == message


def test_divisors() -> None:
    assert divisors(1) == [1]
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
