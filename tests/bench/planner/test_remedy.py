"""Memory savings that make a run fit, and more GPUs where none does."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.planner import remedy, savings
from bench.planner.dry_runs import DryRuns
from bench.pool import Here
from bench.simulator import dry_run
from odysseus.config.run import RunConfig
from tests.support.marks import slow
from tests.support.small_node import planned_run, write_profile


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return planned_run(write_profile(tmp_path))


def fits(run: RunConfig, added: Sequence[str]) -> bool:
    """Whether the run with these savings fits, from a dry run of all blocks."""
    changed = savings.with_savings(run, added)
    return not dry_run.need(changed, dry_run.counted(changed)).limit


@pytest.mark.parametrize(("method", "seq_len"), [("tp", 4096), slow("ulysses", 8192)])
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


def test_cheap_savings_are_preferred(run: RunConfig) -> None:
    """Tiles alone are enough here, and so is recomputation, which costs more."""
    run = replace(run, method="ulysses", seq_len=2048)
    assert fits(run, ["activation_checkpointing"])
    assert remedy.remedy(run, DryRuns()).added == ("tiled_mlp_compute",)


def test_offloads_that_fill_the_host_are_left_out(run: RunConfig) -> None:
    run = replace(run, method="ulysses", seq_len=9216)
    found = remedy.remedy(run, DryRuns())
    assert found.need.host > 0
    found = remedy.remedy(replace(run, host_memory_limit_bytes=1), DryRuns())
    assert (found.need.limit, found.need.host) == ("", 0)
    assert "ulysses_head_chunks" in found.added


def test_nothing_fits_and_the_least_is_returned(run: RunConfig) -> None:
    run = replace(run, method="tp", seq_len=2**15)
    dry_runs = DryRuns()
    found = remedy.remedy(run, dry_runs)
    assert found.need.limit == "GPU"
    every = savings.with_savings(run, savings.to_add(run))
    assert found.need.share <= dry_runs.need(every).share


def test_more_gpus_are_a_longer_axis_and_then_a_ring(run: RunConfig) -> None:
    run = replace(run, method="odysseus", seq_len=8192)
    wider = remedy.more_gpus(run, DryRuns())
    assert wider is not None
    assert not dry_run.need(wider, dry_run.counted(wider)).limit
    halved = replace(wider, world_size=wider.world_size // 2)
    assert wider.shards == wider.world_size
    assert wider.sequence_size == 8  # as many as the model has heads
    assert wider.ring_parallel_size == wider.world_size // 8 > 1
    half_ring = replace(halved, ring_parallel_size=wider.ring_parallel_size // 2)
    assert dry_run.need(half_ring, dry_run.counted(half_ring)).limit == "GPU"


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


def test_each_dry_run_is_made_once(run: RunConfig) -> None:
    executor = Counting()
    dry_runs = DryRuns(executor)
    assert dry_runs.need(run) == dry_runs.need(replace(run))
    assert executor.calls == 2
    dry_runs.need(replace(run, seq_len=2048))
    assert executor.calls == 4


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            "--seq_len 4096 --method tp",
            ["- tp fits with tiled_mlp_compute and activation_checkpointing: "],
        ),
        (
            "--seq_len 8192 --method tp --objective throughput --tiled_loss_compute false",
            ["it fits with more memory savings", "- tp fits with tiled_loss_compute"],
        ),
        (
            "--seq_len 32768 --method tp --tiled_mlp_compute true",
            ["nothing fits, whatever", "- tp does not fit (GPU memory is short) with "],
        ),
    ],
)
def test_plan_says_what_to_add(
    run: RunConfig, flags: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small = "--world_size 4 --model.num_hidden_layers 7 --model.head_dim 32"
    assert main(["plan", "--hardware", run.hardware, *small.split(), *flags.split()]) == 1
    printed = capsys.readouterr().out
    assert [text for text in expected if text not in printed] == [], printed
