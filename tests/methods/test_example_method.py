"""The method that docs/adding-a-method.md shows: right to the last gradient, and what it sends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.theory import traffic as theory_traffic
from odysseus.config.run import RunConfig
from tests.support.parity import assert_parity
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks
from tests.support.runs import RUN, VARIANTS
from tests.support.traffic import measured_columns

PAGE = ROOT / "docs" / "adding-a-method.md"
SOURCE = ROOT / "tests" / "support" / "example_method.py"
CELL = replace(RUN, method=str(SOURCE))


@pytest.mark.parametrize(
    "run",
    [
        replace(CELL, world_size=2),
        replace(CELL, world_size=4, model=VARIANTS["kv_heads_fewer_than_ranks"]),
        replace(CELL, world_size=4, sequence_parallel_size=2, activation_checkpointing=True),
        replace(CELL, world_size=4, ring_parallel_size=2, tiled_mlp_compute=True),
        replace(CELL, world_size=2, model=VARIANTS["qwen"], regather=False),
    ],
    ids=["2", "fewer kv heads", "replicas", "ring", "kept gathers"],
)
def test_it_equals_one_process(run: RunConfig) -> None:
    assert_parity(run)


def test_it_sends_half_of_each() -> None:
    run = replace(CELL, world_size=4)
    ulysses, tp_sp = (
        theory_traffic.step_traffic(replace(run, method=name)).bytes(purpose="activation")
        for name in ("ulysses", "tp_sp")
    )
    for columns in run_ranks(measured_columns, 4, [run]):
        assert columns[0]["comm_bytes_activation"] == ulysses + tp_sp // 2


def test_the_page_shows_this_method() -> None:
    source = SOURCE.read_text()
    assert f"```python\n{source}```" in PAGE.read_text()
    assert len(source.splitlines()) <= 60
