"""plan --objective throughput: what fits, fastest first, from shallow dry runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.planner import ranking
from bench.simulator import dry_run, predict, shallow
from bench.theory import memory as theory_memory
from methods import METHODS
from odysseus.config.run import ModelOptions
from tests.support.marks import slow
from tests.support.small_runs import LLAMA3_ON_4_GPUS


@pytest.mark.parametrize("method", [*METHODS, slow("tsp")])
@pytest.mark.parametrize("step", [slow(0), -1])
def test_shallow_runs_predict_a_deep_one(method: str, step: int) -> None:
    run = ranking.ladder(replace(LLAMA3_ON_4_GPUS, method=method))[step]
    counted = predict.count(run)
    columns = predict.columns(run, counted)
    found = ranking.predicted(run)
    need = dry_run.need(run, counted)
    assert found.need.host == need.host
    assert found.need.gpu == pytest.approx(need.gpu, rel=0.01)  # the peak may be another one
    assert found.parts_ms["step_ms_p50"] == pytest.approx(columns["step_ms_p50"], rel=1e-3)
    parts = [found.parts_ms[part] for part in ranking.PARTS[1:]]
    assert sum(parts) == pytest.approx(found.parts_ms["step_ms_p50"])


def test_a_deep_run_may_wait_for_its_host() -> None:
    """A head of many rows keeps the device busy for as long as the host issues three blocks."""
    model = replace(LLAMA3_ON_4_GPUS.model, num_hidden_layers=32)
    run = replace(LLAMA3_ON_4_GPUS, method="tp_sp", model=model, world_size=8, seq_len=2048)
    columns = predict.columns(run, predict.count(run))
    found = ranking.predicted(run)
    assert columns["idle_ms"] > 0.1 * columns["step_ms_p50"]
    assert found.parts_ms["step_ms_p50"] == pytest.approx(columns["step_ms_p50"])
    parts = [found.parts_ms[part] for part in ranking.PARTS[1:]]
    assert sum(parts) == pytest.approx(found.parts_ms["step_ms_p50"])


@pytest.mark.parametrize("axes", [slow((1, 1)), slow((1, 4)), slow((2, 2)), (4, 1)])
@pytest.mark.parametrize("method", [slow("tp"), slow("tp_sp"), "ulysses", slow("odysseus")])
def test_the_bound_by_closed_forms_is_below_every_dry_run(
    method: str, axes: tuple[int, int]
) -> None:
    run = shallow.with_blocks(replace(LLAMA3_ON_4_GPUS, method=method, seq_len=16384), 3)
    run = replace(run, sequence_parallel_size=axes[0], ring_parallel_size=axes[1])
    for tried in ranking.ladder(run):
        peak = dry_run.counted(tried, only_memory=True).peak.bytes
        assert 0.02 * peak < theory_memory.least_peak_bytes(tried) <= peak


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("ulysses", "mixtral-8x7b"),
        slow("tp_sp", "mixtral-8x7b"),
        slow("ulysses+tp_sp", "llama3-8b"),
        slow("tsp+zero", "llama3-8b"),
    ],
)
def test_the_bound_of_pairs_and_experts_is_below_every_dry_run(method: str, model: str) -> None:
    run = replace(LLAMA3_ON_4_GPUS, method=method, seq_len=16384)
    run = replace(run, model=ModelOptions(name_or_path=model, num_hidden_layers=2))
    for tried in ranking.ladder(run):
        peak = dry_run.counted(tried, only_memory=True).peak.bytes
        assert 0 < theory_memory.least_peak_bytes(tried) <= peak


@pytest.mark.parametrize("method", ["tp", "ulysses"])
def test_what_the_bound_rules_out_does_not_fit(method: str) -> None:
    model = replace(LLAMA3_ON_4_GPUS.model, num_hidden_layers=32)
    run = replace(LLAMA3_ON_4_GPUS, method=method, model=model, seq_len=2**17)
    assert ranking._least_need(run).limit == "GPU"
    assert ranking.predicted(run).need.limit == "GPU"


def test_memory_alone_is_counted_alike() -> None:
    run = shallow.with_blocks(replace(LLAMA3_ON_4_GPUS, method="tp_sp"), 2)
    alone, whole = (dry_run.counted(run, True, only_memory) for only_memory in (True, False))
    assert alone.program == whole.program
    assert alone.peak == whole.peak
    assert alone.flops["matmul_flops"] == 0 < whole.flops["matmul_flops"]


@pytest.mark.slow
def test_every_trick_takes_less_memory_and_more_time_than_the_one_before() -> None:
    """Compare tricks on a run whose computation takes longer than its copies."""
    choices = [
        ranking.predicted(run) for run in ranking.ladder(replace(LLAMA3_ON_4_GPUS, seq_len=2**19))
    ]
    needs = [choice.need.gpu for choice in choices]
    times = [choice.parts_ms["step_ms_p50"] for choice in choices]
    assert needs == sorted(needs, reverse=True)
    assert all(later > 0.999 * sooner for sooner, later in pairwise(times))  # copies hide


def test_layouts_of_all_sizes_and_of_the_one_that_is_set() -> None:
    found = [
        (run.method, run.sequence_size, run.ring_parallel_size, run.tensor_parallel_size)
        for run in ranking.layouts(LLAMA3_ON_4_GPUS)
    ]
    split = {(m, s, r, 1) for m in METHODS for s, r in ((2, 1), (2, 2), (4, 1))}
    alone = {("ulysses", 1, r, 1) for r in (1, 2, 4)}
    assert sorted(found) == sorted(split | alone | {("ulysses", 2, 1, 2)})
    some = {(r.method, r.sequence_size) for r in ranking.layouts(LLAMA3_ON_4_GPUS, ["tp", "tp_sp"])}
    assert some == {(m, s) for m in ("tp", "tp_sp") for s in (2, 4)} | {("tp", 1)}
    no_ring = {
        (r.method, r.ring_parallel_size)
        for r in ranking.layouts(LLAMA3_ON_4_GPUS, ["tsp", "tp_sp"])
    }
    assert no_ring == {("tsp", 1), ("tp_sp", 1), ("tp_sp", 2), ("tp_sp", 4)}
    set_by_user = replace(LLAMA3_ON_4_GPUS, ring_parallel_size=2)
    assert {run.sequence_size for run in ranking.layouts(set_by_user)} == {2}
    tensor = replace(LLAMA3_ON_4_GPUS, method="ulysses", tensor_parallel_size=2)
    sizes = {(r.sequence_size, r.ring_parallel_size) for r in ranking.layouts(tensor)}
    assert sizes == {(1, 1), (1, 2), (2, 1)}
    line = ranking.in_words(replace(tensor, sequence_parallel_size=2), None, 0)
    assert line == "ulysses, sequence 2, ring 1, tensor 2: does not fit"


@pytest.mark.slow
def test_fastest_first_each_with_the_fewest_tricks() -> None:
    lines: list[str] = []
    base = replace(LLAMA3_ON_4_GPUS, world_size=2, seq_len=2**17)
    found = ranking.ranked(ranking.layouts(base), lines.append)
    speeds = [choice.tokens_per_s_per_gpu for choice in found]
    assert speeds == sorted(speeds, reverse=True)
    assert len(found) <= len(lines) == 6
    assert any(choice.tricks != "none" for choice in found)
    for choice in found:
        assert not choice.need.limit
        layout = replace(
            base,
            method=choice.run.method,
            sequence_parallel_size=choice.run.sequence_size,
            ring_parallel_size=choice.run.ring_parallel_size,
        )
        runs = ranking.ladder(layout)
        last = runs.index(choice.run) - 1
        assert last < 0 or ranking.predicted(runs[last]).need.limit


def test_the_verb_prints_a_ranking_and_writes_the_best_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "best.csv"
    flags = "--objective throughput --model.name_or_path llama3-8b --model.num_hidden_layers 4"
    flags += f" --world_size 2 --seq_len 8192 --out {out}"
    assert main(["plan", *flags.split()]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("tokens/s/GPU", "odysseus", "tricks", "predicted"))
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--hardware b300", "valid: hardware = a100-80g, h100-80g, h200-141g"),
        ("--seq_len 1000001 --sequence_parallel_size 8", "1000001"),
        ("--objective fastest", "longest"),
    ],
)
def test_bad_input(flags: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--objective", "throughput", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
