"""Ring attention crosses all four methods: same loss, same gradients, in fp64 at 1e-12.

The tolerance is tests/test_parity.py's, and for the same reason.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from methods import METHODS
from odysseus.config import RunConfig
from tests.ranks import run_ranks
from tests.test_parity import RUN, TOLERANCE
from tests.test_toggles import LOSS_TILES, errors

ORDERS = ("zigzag", "contiguous")
BACKENDS = ("native", "allgather")
BASE = replace(RUN, seq_len=80, tiled_loss_compute=False)
"""Two blocks, batch 2, twice as many query heads as kv heads; 10 tokens a rank at the most ranks:
five of each chunk."""
ALL_ON: dict[str, Any] = LOSS_TILES | {
    "activation_checkpoint_cpu_offload": True,
    "tiled_mlp_compute": True,
    "reduce_bucket_size": 1000,
    "parameter_offload": "cpu",
}


def check_all(runs: list[RunConfig]) -> None:
    for run in runs:
        run.check()
    for rank in run_ranks(errors, runs[0].world_size, runs):
        for run, worst in zip(runs, rank, strict=True):
            assert worst.pop("weights") < 1e-8, run
            assert {name: e for name, e in worst.items() if not e < TOLERANCE} == {}, run


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axes", [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)])
def test_parity_of_every_hybrid(method: str, axes: tuple[int, int]) -> None:
    ring, sequence = axes
    base = replace(
        BASE,
        method=method,
        world_size=ring * sequence,
        ring_parallel_size=ring,
        sequence_parallel_size=sequence,
    )
    check_all(
        [
            replace(base, ring_order=order, ring_backend=backend, **tricks)
            for order, backend, tricks in itertools.product(ORDERS, BACKENDS, ({}, ALL_ON))
        ]
    )
