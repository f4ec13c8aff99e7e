"""Heads that do not divide, under Ulysses: loss, gradients, bytes, memory and FLOPs are right on
every rank."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.runner import launch
from bench.simulator import dry_run, ranks
from bench.theory import traffic as theory_traffic
from odysseus.config.advice import advice
from odysseus.config.run import RunConfig
from tests.support import dry_run as dry_runs
from tests.support.marks import slow
from tests.support.ranks import run_ranks
from tests.support.runs import MODEL
from tests.support.toggles import ALL_ON, BASE, check_all
from tests.support.traffic import measured_columns

CASES = [
    # Ranks, those of the ring, query heads, kv heads.
    (4, 2, 6, 3),  # unequal shares in each ring
    slow(2, 1, 6, 3),
    slow(4, 1, 6, 2),  # kv heads fewer than ranks
    slow(3, 1, 8, 4),
    slow(4, 1, 5, 1),
    slow(4, 1, 10, 5),
    slow(4, 1, 9, 3),  # of one kv head, one rank needs a part and another the rest
]


def runs_of(world_size: int, ring: int, heads: int, kv_heads: int) -> list[RunConfig]:
    """Return runs with no trick, with one, and with all."""
    model = replace(MODEL, num_attention_heads=heads, num_key_value_heads=kv_heads)
    sizes = {"world_size": world_size, "ring_parallel_size": ring, "seq_len": 36 * world_size}
    base = replace(BASE, method="ulysses", model=model, **sizes)
    assert not base.heads_divide
    return [base, replace(base, activation_checkpointing=True), replace(base, **ALL_ON)]


@pytest.mark.parametrize(("world_size", "ring", "heads", "kv_heads"), CASES)
def test_loss_and_gradients(world_size: int, ring: int, heads: int, kv_heads: int) -> None:
    check_all(runs_of(world_size, ring, heads, kv_heads))


@pytest.mark.parametrize(("world_size", "ring", "heads", "kv_heads"), CASES)
def test_bytes_equal_the_theory(world_size: int, ring: int, heads: int, kv_heads: int) -> None:
    runs = runs_of(world_size, ring, heads, kv_heads)
    found = run_ranks(measured_columns, world_size, runs)
    for rank, measured in enumerate(found):
        expected = [theory_traffic.step_traffic(run, rank).columns for run in runs]
        assert measured == expected, rank


@pytest.mark.parametrize(("world_size", "ring", "heads", "kv_heads"), CASES)
def test_dry_runs_equal_every_rank(world_size: int, ring: int, heads: int, kv_heads: int) -> None:
    dry_runs.check_all(runs_of(world_size, ring, heads, kv_heads), [0, world_size - 1])


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (9, 3)])
def test_a_dry_run_counts_the_rank_with_most(heads: int, kv_heads: int) -> None:
    run, *_ = runs_of(4, 1, heads, kv_heads)
    counts = [dry_run.count(run, rank) for rank in range(4)]
    heaviest = dry_run.counted(run)
    assert heaviest.peak.bytes == max(counted.peak.bytes for counted in counts)
    flops = [counted.flops["attention_flops"] for counted in counts]
    assert flops[ranks.busiest_rank(run)] == max(flops)
    columns = dry_run.columns(run, heaviest)
    assert columns["attention_flops_max"] == max(flops)
    assert columns["attention_flops_mean"] == pytest.approx(sum(flops) / 4, rel=1e-12)
    row = launch.run_cell(replace(run, dry_run=True))
    assert row["status"] == "ok", row["error"]
    assert row["comm_bytes_total"] == row["theory_comm_bytes_total"]


def test_what_it_costs_is_said() -> None:
    run, *_ = runs_of(4, 1, 6, 2)
    assert [line for line in advice(run) if "heads" in line] == [
        "sequence_parallel_size = 4 does not divide the heads: the busiest rank computes 2 of 6, "
        "1.33 times the mean"
    ]


@pytest.mark.parametrize("change", [{"method": "tp_sp"}, {"ulysses_all_to_all": "yunchang"}])
def test_others_share_heads_evenly(change: dict[str, str]) -> None:
    run, *_ = runs_of(4, 1, 6, 2)
    with pytest.raises(ValueError, match=r"= 4 does not fit .* = 6 .* valid: \[1, 2\]; method"):
        replace(run, **change).check()
