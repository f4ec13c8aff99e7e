"""The parts that docs/adding-a-method.md shows: right to the last gradient, and what they send."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.theory import traffic as theory_traffic
from odysseus.config.run import RunConfig
from tests.support.parity import assert_parity
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks
from tests.support.runs import RUN, VARIANTS
from tests.support.traffic import measured_columns

PAGE = ROOT / "docs" / "adding-a-method.md"
ATTENTION, MLP = (ROOT / "tests" / "support" / f"example_{p}.py" for p in ("attention", "mlp"))
CELL = replace(RUN, method=str(MLP))


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
@pytest.mark.parametrize("part", [ATTENTION, MLP], ids=["attention", "mlp"])
def test_it_equals_one_process(run: RunConfig, part: Path) -> None:
    assert_parity(replace(run, method=str(part)))


def test_they_send_what_the_parts_of_a_pair_do() -> None:
    runs = [replace(CELL, world_size=4, method=str(part)) for part in (ATTENTION, MLP)]
    expected = [
        theory_traffic.step_traffic(replace(runs[0], method=name)).bytes(purpose="activation")
        for name in ("ulysses", "ulysses+tp_sp")
    ]
    for columns in run_ranks(measured_columns, 4, runs):
        assert [of_run["comm_bytes_activation"] for of_run in columns] == expected


@pytest.mark.parametrize("part", [ATTENTION, MLP], ids=["attention", "mlp"])
def test_the_page_shows_them(part: Path) -> None:
    source = part.read_text()
    assert f"```python\n{source}```" in PAGE.read_text()
    assert len(source.splitlines()) <= 40
