"""Memory savings that make a run fit, and more GPUs where none does."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.commands import plan_longest, plan_throughput
from bench.planner import dry_runs as dry_runs_module
from bench.planner import ranking, remedy, savings
from bench.planner.dry_runs import DryRuns
from bench.pool import Here
from bench.simulator import dry_run
from odysseus.config.run import RunConfig
from tests.support.marks import slow
from tests.support.need_by_formula import NeedByFormula
from tests.support.small_node import planned_run, write_profile


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return planned_run(write_profile(tmp_path))


def fits(run: RunConfig, added: Sequence[str]) -> bool:
    """Whether the run with these savings fits, from a dry run of all blocks."""
    changed = savings.with_savings(run, added)
    return not dry_run.need(changed, dry_run.counted(changed)).limit


@pytest.mark.parametrize(("method", "seq_len"), [slow("tp", 4096), slow("ulysses", 9216)])
def test_it_fits_with_the_savings_and_not_with_one_less(
    run: RunConfig, method: str, seq_len: int
) -> None:
    run = replace(run, method=method, seq_len=seq_len)
    assert not fits(run, ())
    found = remedy.remedy(run, DryRuns())
    assert found.need.limit == ""
    assert found.run == savings.with_savings(run, found.added)
    assert fits(run, found.added)
    for name in found.added:
        assert not fits(run, [other for other in found.added if other != name])


@pytest.mark.parametrize(
    ("seq_len", "added"),
    [
        (44_000, ["tiled_mlp_compute"]),
        (70_000, ["activation_checkpointing"]),
        (90_000, ["tiled_mlp_compute", "activation_checkpointing"]),
        (190_000, ["tiled_mlp_compute", "activation_checkpoint_cpu_offload"]),
        (230_000, ["tiled_mlp_compute", "activation_checkpointing", "optimizer.offload"]),
    ],
)
def test_the_cheapest_savings_that_are_needed(
    run: RunConfig, seq_len: int, added: list[str]
) -> None:
    """Offloading 230,000 tokens fills the host, so the optimizer goes there instead."""
    found = remedy.remedy(replace(run, method="tp", seq_len=seq_len), NeedByFormula())
    assert found.need.limit == ""
    assert [*found.added] == added


def test_nothing_fits_and_the_least_is_returned(run: RunConfig) -> None:
    run = replace(run, method="ulysses", seq_len=1_000_000, host_memory_limit_bytes=10**12)
    found = remedy.remedy(run, NeedByFormula())
    assert found.need.limit == "GPU"
    every = savings.with_savings(run, savings.to_add(run))
    assert found.need.share == NeedByFormula().need(every).share
    assert "parameter_offload" not in found.added  # the optimizer's offload is as much


def test_more_gpus_are_a_longer_axis_and_then_a_ring(run: RunConfig) -> None:
    run = replace(run, method="odysseus", seq_len=2**18)
    wider = remedy.more_gpus(run, NeedByFormula())
    assert wider is not None
    axes = wider.world_size, wider.sequence_size, wider.ring_parallel_size
    assert axes == (16, 8, 2)  # the model has eight heads
    assert remedy.more_gpus(replace(run, seq_len=2**28), NeedByFormula()) is None


def test_savings_that_a_run_has_or_cannot_have_are_not_added(run: RunConfig) -> None:
    plain = ["tiled_mlp_compute", "activation_checkpointing", "activation_checkpoint_cpu_offload"]
    hosts = ["optimizer.offload", "parameter_offload"]
    assert savings.to_add(replace(run, method="tp")) == [*plain, *hosts]
    ulysses = replace(run, method="ulysses", tiled_loss_compute=False)
    chunks = ["ulysses_head_chunks"]
    assert savings.to_add(ulysses) == ["tiled_loss_compute", *plain, *chunks, *hosts]
    every = savings.with_savings(ulysses, savings.to_add(ulysses))
    assert savings.to_add(every) == []
    assert every.ulysses_head_chunks == 2  # all query heads of a rank
    offloaded = replace(ulysses, activation_checkpoint_cpu_offload=True, parameter_offload="cpu")
    assert savings.to_add(offloaded) == ["tiled_loss_compute", plain[0], *chunks]
    names = ["tiled_mlp_compute", "ulysses_head_chunks", "optimizer.offload"]
    words = "tiled_mlp_compute, ulysses_head_chunks 2 and optimizer.offload cpu"
    assert savings.in_words(every, names) == words
    assert savings.in_words(every, ["tiled_mlp_compute"]) == "tiled_mlp_compute"


class Counting(Here):
    """Executor that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        self.calls += 1
        return super().submit(*arguments, **named)


def test_each_dry_run_is_made_once(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dry_runs_module, "peaks", lambda run, blocks: {"unit": run.seq_len * blocks}
    )
    executor = Counting()
    dry_runs = DryRuns(executor)
    assert dry_runs.need(run) == dry_runs.need(replace(run))
    assert executor.calls == 2
    dry_runs.need(replace(run, seq_len=2048))
    assert executor.calls == 4


@pytest.mark.parametrize(
    ("seq_len", "expected"),
    [
        (
            102_400,
            ["- tp fits with activation_checkpoint_cpu_offload: "],
        ),
        (
            1_024_000,
            [
                "nothing fits, with all the memory savings that a plan tries; the nearest:",
                "- tp does not fit (GPU memory is short) with ",
                "- on 16 GPUs it fits, with a sequence axis of 8 and a ring of 2",
            ],
        ),
    ],
)
def test_plan_says_what_to_add(
    run: RunConfig,
    seq_len: int,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plan_longest, "DryRuns", NeedByFormula)
    flags = f"--hardware {run.hardware} --method tp --world_size 4 --seq_len {seq_len}"
    assert main(["plan", *flags.split(), "--host_memory_limit_bytes", "1000000000"]) == 1
    printed = capsys.readouterr().out
    assert [text for text in expected if text not in printed] == [], printed


def test_a_ranking_of_nothing_says_what_to_add(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan_throughput, "DryRuns", NeedByFormula)
    monkeypatch.setattr(ranking, "fitting", lambda run: None)
    flags = "--objective throughput --method odysseus,tp --world_size 4 --seq_len 45056"
    assert main(["plan", *flags.split()]) == 1
    printed = capsys.readouterr().out
    for method in ("odysseus", "tp"):
        assert f"- {method} fits with " in printed
