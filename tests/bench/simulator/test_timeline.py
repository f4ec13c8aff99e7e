"""The timeline: programs simulated by hand, and those of dry runs against sums over their parts."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.hardware.speeds import Attention, Link, Speeds
from bench.simulator import dry_run, predict, target
from bench.simulator.cost_model import Clock
from bench.simulator.program import HOOKS, HOST, Op, Program, Wait
from bench.simulator.timeline import Timeline, simulate
from methods import METHODS
from odysseus.config.run import ModelOptions, OptimizerOptions, RunConfig

GB = 10**9
EVEN = Speeds(
    peak_flops_per_s=1e12,
    issue_s=0,
    matmul=((1.0, 1.0, 1.0, 1e12),),
    attention={"flash_attention_2": Attention(forward=((1, 1e12),), backward=((1, 1e12),))},
    memory=((1, GB),),
    host_memory_bytes_per_s=GB,
    to_host_bytes_per_s=GB,
    to_device_bytes_per_s=GB,
    links=(Link(points=((1, GB),)),),
)
"""A second a gigabyte, whatever is done with it."""
LLAMA = RunConfig(
    method="ulysses",
    model=ModelOptions(name_or_path="llama3-8b", num_hidden_layers=2),
    world_size=8,
    seq_len=32768,
    dtype="bf16",
    dry_run=True,
    hardware="h100-80g",
    rank=0,
)


def op(stream: str, seconds: float, kind: str = "elementwise", after: tuple[int, ...] = ()) -> Op:
    ranks = (0, 1) if kind == "all_gather" else ()
    size = int(seconds * GB)
    return Op(kind, kind, stream, after, 0, size, (size,), ranks, "", "")


def simulated(program: Program, issue_s: float = 0) -> Timeline:
    return simulate(program, Clock(replace(EVEN, issue_s=issue_s), "flash_attention_2", 8))


def ends(found: Timeline) -> list[float]:
    """Return the times at which operations end, in ascending order."""
    return sorted(round(span.end_s, 9) for span in found.spans)


def test_streams_run_beside_each_other_and_each_in_order() -> None:
    found = simulated([op("a", 3), op("b", 1, "to_host"), op("b", 1, "to_host")])
    assert ends(found) == [1, 2, 3]
    assert found.step_s == 3


def test_kernels_of_several_streams_share_the_device() -> None:
    assert ends(simulated([op("a", 3), op("b", 1)])) == [2, 4]
    assert ends(simulated([op(HOST, 1), op("a", 1)])) == [1, 2]


def test_a_collective_takes_multiprocessors_from_matmuls() -> None:
    """A quarter of them for three seconds, in which 2.25 of 4 seconds of a matmul are done."""
    matmul = Op("", "matmul", "a", (), flops=4 * 10**12, sizes=(256, 512, 15_258_789))
    speeds = replace(EVEN, multiprocessors=4, collective_multiprocessors=1)
    clock = Clock(speeds, "flash_attention_2", 8)
    program: Program = [matmul, op("b", 3, "all_gather")]
    assert ends(simulate(program, clock)) == [3, pytest.approx(4.75, rel=1e-4)]
    elementwise: Program = [op("a", 4), op("b", 3, "all_gather")]
    assert ends(simulate(elementwise, clock)) == [3, 4]


def test_an_operation_waits_for_another_stream() -> None:
    found = simulated([op("a", 2), op("b", 1, after=(0,)), op("a", 4)])
    assert [(s.op.stream, s.start_s) for s in found.spans] == [("a", 0), ("b", 2), ("a", 2)]


def test_operations_on_one_link_share_it_equally() -> None:
    """Each has half the link until the short one ends, then the other has the whole link."""
    gathers: Program = [op("a", 3, "all_gather"), op("b", 1, "all_gather")]
    assert ends(simulated(gathers)) == [2, 4]
    assert ends(simulated([gathers[0], op("b", 1)])) == [1, 3]


def test_the_host_waits_and_issues() -> None:
    program = [op("a", 5), Wait((0,)), op("b", 1)]
    assert ends(simulated(program)) == [5, 6]
    # A second to issue each: the device waits for the host.
    assert ends(simulated([op("a", 0.5), op("a", 0.5), op("a", 0.5)], issue_s=1)) == [0.5, 1.5, 2.5]
    # What the host does itself holds up what it would issue next.
    assert ends(simulated([op(HOST, 2), op("a", 1)])) == [2, 3]


def test_the_split_adds_up() -> None:
    program = [
        op("a", 2),
        op("b", 3, "all_gather"),
        op("c", 4, "to_host"),
        Wait((2,)),
        op("a", 1),
    ]
    split = simulated(program, issue_s=0.5).split_s()
    assert split == {"compute": 3, "communication": 1.5, "offload": pytest.approx(1.5), "idle": 0}


def test_zeros_hooks_hold_up_the_host() -> None:
    program: Program = [op("a", 1), op(HOST, 0, HOOKS), op("b", 1, "all_gather")]
    slow = Clock(replace(EVEN, issue_s=1, hooks_s=2.5), "flash_attention_2", 8)
    found = simulate(program, slow)
    assert ends(found) == [1, 3.5, 4.5]
    assert found.split_s() == {"compute": 1, "communication": 1, "offload": 0, "idle": 2.5}


def test_ranks_wait_for_each_other_longer_after_computing_longer() -> None:
    """One second more after two seconds, nothing after none, because the ranks have just met."""
    program = [op(HOST, 2), op("b", 1, "all_gather"), Wait((1,)), op("b", 1, "all_gather")]
    uneven = Clock(replace(EVEN, skew=((1, 0.5), (2, 1))), "flash_attention_2", 8)
    assert ends(simulate(program, uneven)) == [2, 4, pytest.approx(5)]
    assert ends(simulated(program)) == [2, 3, 4]
    # A gather that ends while the host computes is no meeting.
    ahead = [op("b", 1, "all_gather"), op(HOST, 2), op("c", 1, "all_gather")]
    assert ends(simulate(ahead, uneven)) == pytest.approx([1, 2, 4])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ["fsdp2", "overlap"])
def test_hooks_come_before_each_collective_of_zeros(method: str, engine: str) -> None:
    run = replace(LLAMA, method=method, zero_engine=engine)
    program = dry_run.count(run, 0, True).program
    kinds = [action.kind if isinstance(action, Op) else "" for action in program]
    after = [i + 1 for i, kind in enumerate(kinds) if kind == HOOKS]
    zero_ops = [
        i
        for i, action in enumerate(program)
        if isinstance(action, Op) and action.purpose in ("parameter", "gradient")
    ]
    assert after == zero_ops
    assert zero_ops


@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_overlaps_what_zero_moves_and_a_cpu_does_not(method: str) -> None:
    """The operations are the same: on FSDP2's streams on a GPU, and one after another on a CPU."""
    run = replace(LLAMA, method=method)
    gpu = dry_run.count(run, 0, True).program
    cpu: Program = [
        action._replace(stream=HOST, after=()) if isinstance(action, Op) else action
        for action in gpu
    ]
    known = target.clock(run)
    assert known is not None
    free = replace(known, speeds=replace(known.speeds, issue_s=0))
    ahead, alone = simulate(gpu, free), simulate(cpu, free)
    work = sum(free.seconds(action) for action in gpu if isinstance(action, Op))
    assert alone.step_s == pytest.approx(work)
    moved = sum(
        free.seconds(a) for a in gpu if isinstance(a, Op) and a.purpose in ("parameter", "gradient")
    )
    hidden = alone.step_s - ahead.step_s
    assert 0 < hidden <= moved * (1 + 1e-9)
    assert ahead.split_s()["communication"] < alone.split_s()["communication"]


def test_without_prefetch_a_gpu_waits_for_weights_and_holds_fewer() -> None:
    """Each gather then begins when all operations issued before it have ended. On a CPU the time is
    the same with and without prefetch."""
    four = replace(LLAMA, model=replace(LLAMA.model, num_hidden_layers=4))
    ahead, needed = (replace(four, zero_prefetch=on) for on in (True, False))
    counts = [dry_run.count(run, 0, True) for run in (ahead, needed)]
    hides, waits = (predict.timeline(*each) for each in zip((ahead, needed), counts, strict=True))
    assert hides is not None
    assert waits is not None
    gathers = [s for s in waits.spans if s.op.purpose == "parameter"]
    computing = [s for s in waits.spans if not s.op.ranks and s.op.stream != HOST]
    assert len(gathers) == len([s for s in hides.spans if s.op.purpose == "parameter"])
    for gather in gathers:
        assert not [c for c in computing if c.start_s < gather.start_s < c.end_s]
    exposed = waits.split_s()["communication"] - hides.split_s()["communication"]
    taken = sum(gather.end_s - gather.start_s for gather in gathers)
    assert taken / 2 < exposed <= taken
    held = [found.peak.by_kind["communication"] for found in counts]
    assert held[1] < held[0]
    on_cpu = replace(EVEN, attention={"sdpa": EVEN.attention["flash_attention_2"]})
    cpu = [replace(run, hardware="", dtype="fp32", seq_len=512) for run in (ahead, needed)]
    programs = [dry_run.count(run, 0, True).program for run in cpu]
    first, second = (simulate(p, Clock(on_cpu, "sdpa", 8)).step_s for p in programs)
    assert 0 < first == pytest.approx(second)


def test_offload_hides_behind_blocks_on_a_gpu() -> None:
    long = replace(LLAMA, seq_len=2**19, activation_checkpoint_cpu_offload=True)
    found = predict.timeline(long, dry_run.count(long, 0, True))
    assert found is not None
    copied = [span for span in found.spans if span.op.kind in ("to_host", "to_device")]
    size = long.seq_len // 8 * 4096 * 2
    assert [span.op.bytes for span in copied] == [
        size,
        size,
    ]  # out and back; the last block's stays
    assert len({span.op.stream for span in copied}) == 2
    assert found.split_s()["offload"] == 0


def test_a_second_dry_run_issues_the_same() -> None:
    run = replace(LLAMA, activation_checkpoint_cpu_offload=True)
    assert dry_run.count(run, 0, True).program == dry_run.count(run, 0, True).program


def test_ring_hops_hide_behind_attention() -> None:
    """Double buffering exposes no hop of forward while attention takes longer."""
    run = replace(LLAMA, ring_parallel_size=8, seq_len=2**20)
    found = predict.timeline(run, dry_run.count(run, 0, True))
    assert found is not None
    hops = [span for span in found.spans if span.op.kind == "p2p"]
    assert len(hops) == 2 * (7 + 7 + 7)  # blocks x (forward, backward, gradients)
    taken = sum(span.end_s - span.start_s for span in hops)
    assert found.split_s()["communication"] < taken / 4


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_whole_blocks_of_a_ring_have_their_own_rate(way: str) -> None:
    """Causal blocks keep the causal rate."""
    run = replace(LLAMA, ring_parallel_size=2)
    kind, name = f"attention_{way}", "flash_attention_2"
    found = [a for a in dry_run.count(run, 0, True).program if isinstance(a, Op) and a.kind == kind]
    even = EVEN.attention[name]
    fast = replace(even, **{f"whole_{way}": ((1, 2e12),)})
    seconds = [
        [Clock(replace(EVEN, attention={name: rates}), name, 8).seconds(op) for op in found]
        for rates in (even, fast)
    ]
    times = [before / after for before, after in zip(*seconds, strict=True)]
    assert times == pytest.approx([1 if op.sizes[4] else 2 for op in found])
    assert {round(ratio) for ratio in times} == {1, 2}


def test_a_row_has_its_time_and_a_trace_its_operations(tmp_path: Path) -> None:
    out, trace = tmp_path / "rows.csv", tmp_path / "trace.json"
    flags = "--dry_run true --hardware h100-80g --dtype bf16 --world_size 4 --seq_len 4096"
    flags += " --hardware.issue_s 5e-6 --hardware.hooks_s 0"  # the GPU takes most of the step
    assert main(["run", *flags.split(), "--out", str(out), "--trace", str(trace)]) == 0
    (row,) = csv.DictReader(out.read_text().splitlines())
    parts = ("compute_ms", "exposed_comm_ms", "exposed_offload_ms", "idle_ms")
    assert sum(float(row[part]) for part in parts) == pytest.approx(float(row["step_ms_p50"]))
    assert 0 < float(row["mfu"]) < 1
    events = json.loads(trace.read_text())["traceEvents"]
    rows = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["tid"] for e in spans} == set(rows)
    assert all(e["dur"] > 0 and e["ts"] >= 0 and e["pid"] == 0 for e in spans)
    assert rows[0].endswith("attention_backward") or rows[0].endswith("matmul")
    for tid in rows:  # viewers take what begins inside another event of a row for its child
        ends = 0.0
        for event in sorted((e for e in spans if e["tid"] == tid), key=lambda e: e["ts"]):
            assert event["ts"] >= ends
            ends = event["ts"] + event["dur"]
    assert max(e["ts"] + e["dur"] for e in spans) == pytest.approx(float(row["step_ms_p50"]) * 1e3)


PREDICTED = "--dry_run true --hardware h100-80g --dtype bf16"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--trace t.json", "needs dry_run = true"),
        ("--trace t.json --dry_run true", "a profile with speeds"),
        (f"--trace /proc/version/t.json {PREDICTED}", "cannot be written"),
    ],
)
def test_bad_traces(flags: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


@pytest.mark.parametrize("ranks", [(0, 8), (0, 4, 8, 12), (6, 7, 8, 9, 10, 11), tuple(range(16))])
def test_collectives_across_nodes_take_longer(ranks: tuple[int, ...]) -> None:
    """Test also groups with strided ranks and groups that straddle the end of a node."""
    known = target.clock(replace(LLAMA, world_size=16))
    assert known is not None
    for kind in ("all_to_all", "all_gather", "all_reduce", "p2p"):
        size = 2**30
        across = Op("", kind, "a", (), 0, size, (size,), ranks, "", "")
        inside = across._replace(ranks=tuple(range(min(len(ranks), 8))))
        assert known.seconds(across) > known.seconds(inside)
        assert (known.bus(across), known.bus(inside)) == ("network", "links")


def test_adamw_on_the_host_waits_for_the_last_gradient() -> None:
    """Test also FSDP2's copies of gradients, and gradients that accumulate on the host."""
    on_host: list[dict[str, Any]] = [
        {"optimizer": OptimizerOptions(offload="cpu")},
        {"parameter_offload": "cpu"},
        {"parameter_offload": "cpu", "gradient_accumulation_steps": 2},
    ]
    for tricks in on_host:
        run = replace(LLAMA, **tricks)
        found = predict.timeline(run, dry_run.count(run, 0, True))
        assert found is not None
        adamw = next(span for span in found.spans if "adamw" in span.op.name)
        gradients = [span.end_s for span in found.spans if span.op.kind == "to_host"]
        assert adamw.op.stream == HOST
        assert adamw.start_s >= max(gradients)
