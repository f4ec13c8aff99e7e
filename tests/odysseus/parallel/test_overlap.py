"""Collectives that run beside computation: those of a block in chunks, and ZeRO-3's on a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from bench.config import checks
from bench.simulator import dry_run
from bench.simulator.program import Op, Wait
from bench.theory import traffic as theory_traffic
from methods import METHODS
from odysseus.config.run import OptimizerOptions, RunConfig
from odysseus.io.text import Samples
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.dry_run import check_all as check_dry_runs
from tests.support.marks import slow
from tests.support.ranks import run_ranks
from tests.support.runs import RUN, VARIANTS
from tests.support.toggles import check_all
from tests.support.traffic import measured_columns

CUT = [name for name in METHODS if name != "ulysses"]
ONE_AND_REST = [name if name == "odysseus" else slow(name) for name in CUT]
AHEAD = {"zero_engine": "overlap"}
IN_CHUNKS: list[dict[str, Any]] = [
    {},
    {"overlap_chunks": 4, "regather": False},
    {"activation_checkpointing": True, "regather": False},
    {"activation_checkpoint_cpu_offload": True, "parameter_offload": "cpu"},
    {"reduce_bucket_size": 1000, "optimizer": OptimizerOptions(offload="cpu")},
    {"activation_checkpointing": True, **AHEAD},
]


def in_chunks(run: RunConfig) -> list[RunConfig]:
    base = replace(run, seq_len=64, overlap_chunks=2, tiled_loss_compute=False)
    return [replace(base, **toggles) for toggles in IN_CHUNKS]


@pytest.mark.parametrize("method", CUT)
@pytest.mark.parametrize("world_size", [slow(2), 4])
def test_chunks_leave_every_gradient_as_it_is(method: str, world_size: int) -> None:
    check_all(in_chunks(replace(RUN, method=method, world_size=world_size)))


@pytest.mark.parametrize("method", CUT)
def test_chunks_with_a_ring_replicas_and_biases(method: str) -> None:
    base = replace(RUN, method=method, world_size=4, seq_len=64, overlap_chunks=2)
    check_all([replace(base, ring_parallel_size=2)])
    of_replicas = replace(base, sequence_parallel_size=2, gradient_accumulation_steps=2)
    check_all([of_replicas, replace(of_replicas, **AHEAD)])
    check_all([replace(base, model=VARIANTS["qwen"], **AHEAD)])


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_chunks_send_what_theory_says(world_size: int) -> None:
    """Chunks send the same bytes in more calls. Recomputation repeats the closing collective of all
    chunks but the last."""
    whole = replace(RUN, dtype="fp32", world_size=world_size, seq_len=64)
    runs = [run for method in CUT for run in in_chunks(replace(whole, method=method))]
    (measured, *_) = run_ranks(measured_columns, world_size, runs)
    for run, columns in zip(runs, measured, strict=True):
        assert columns == theory_traffic.step_traffic(run).columns, run
        one = theory_traffic.step_traffic(replace(run, overlap_chunks=1)).columns
        more = columns["comm_bytes_total"] - one["comm_bytes_total"]
        assert (more > 0) == (run.recomputes and run.method != "odysseus")


@pytest.mark.parametrize("method", CUT)
def test_chunks_sum_the_gradients_of_copied_kv_heads_once(method: str) -> None:
    """Two ranks hold a copy of each of two kv heads."""
    run = replace(RUN, method=method, dtype="fp32", world_size=4, seq_len=64, overlap_chunks=2)
    run = replace(run, model=replace(RUN.model, num_key_value_heads=2))
    assert dry_run.count(run, 0).traffic == theory_traffic.step_traffic(run).columns


@pytest.mark.slow
@pytest.mark.parametrize("method", CUT)
def test_a_dry_run_counts_chunks_as_they_are(method: str) -> None:
    runs = in_chunks(replace(RUN, method=method, world_size=2, dtype="fp32"))
    check_dry_runs([*runs, replace(runs[0], dtype="bf16")], [0])


def beside(run: RunConfig) -> tuple[float, float]:
    """The parts of a step's bytes, of (activations, ZeRO), that run beside another matmul."""
    program = dry_run.count(run, 0, True).program
    hidden, total = {"zero": 0.0, "activation": 0.0}, {"zero": 0.0, "activation": 0.0}
    for index, op in enumerate(program):
        if not isinstance(op, Op) or not op.ranks or op.purpose == "edge":
            continue
        kind = "activation" if op.purpose == "activation" else "zero"
        total[kind] += op.bytes
        for later in program[index + 1 :]:
            if isinstance(later, Wait) and index in later.after:
                break
            if isinstance(later, Op) and later.kind == "matmul":
                hidden[kind] += op.bytes
                break
    return hidden["activation"] / total["activation"], hidden["zero"] / total["zero"]


@pytest.mark.parametrize("method", ONE_AND_REST)
def test_more_collectives_run_beside_matmuls(method: str) -> None:
    """Without chunks, only backward's second gather and the reduction before the weight's gradient
    run beside matmuls. On a CPU none of FSDP2's collectives do; here all do, except those of the
    first unit, of the last, and of the lone norms."""
    run = replace(RUN, method=method, world_size=2, seq_len=64, dtype="fp32")
    run = replace(run, model=replace(run.model, num_hidden_layers=8))
    one, two = (replace(run, overlap_chunks=c) for c in (1, 2))
    assert beside(two)[0] > beside(one)[0] + 0.2
    assert beside(one)[1] == 0
    ahead = replace(run, **AHEAD)
    if method == "odysseus":
        assert beside(ahead)[1] > 0.5
        return
    a = run.architecture
    table, norms = (4 * n * a.hidden_size for n in (a.vocab_size, 2 * a.num_hidden_layers))
    terms = [
        t
        for t in theory_traffic.step_traffic(ahead).terms
        if t.purpose in ("parameter", "gradient")
    ]
    waited = sum(t.bytes for t in terms if t.size_bytes in (table, norms))
    assert beside(ahead)[1] == pytest.approx(float(1 - waited / sum(t.bytes for t in terms)))


def waited_for(run: RunConfig) -> bool:
    """Whether each unit's reduction (embedding, two blocks, head) has ended when backward
    returns."""
    torch.set_num_threads(1)
    mesh = make_mesh(torch.device("cpu"), run)
    started: list[int] = []
    waited: list[int] = []
    reduce_scatter, wait = dist.reduce_scatter_single, dist.Work.wait

    def start(*args: Any, **options: Any) -> dist.Work | None:
        work = reduce_scatter(*args, **options)
        started.append(id(work))
        return work

    def noted(work: dist.Work) -> bool:
        waited.append(id(work))
        return wait(work)

    trainer = Trainer(run, METHODS[run.method], mesh)
    batches = Samples(run, mesh.replica, mesh.shard, mesh.device).step(0)
    with patch.object(dist, "reduce_scatter_single", start), patch.object(dist.Work, "wait", noted):
        trainer.forward_backward(batches)
    return len(started) == 4 and set(started) <= set(waited)


def test_every_reduction_has_ended_when_backward_returns() -> None:
    run = replace(RUN, method="ulysses", world_size=2, **AHEAD)
    assert run_ranks(waited_for, 2, run) == [True, True]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"overlap_chunks": 2, "method": "ulysses"}, "which ulysses has none of; valid: 1"),
        (
            {"overlap_chunks": 2, "tiled_mlp_compute": True},
            "1, or tiled_mlp_compute = false",
        ),
        ({"overlap_chunks": 2, "compile": True}, "valid: 1, or compile = false"),
        ({"overlap_chunks": 0}, "overlap_chunks is 0; it must be at least 1"),
        ({"overlap_chunks": 3}, "sequence_parallel_size x overlap_chunks = 6"),
        ({**AHEAD, "zero_prefetch": False}, "valid: zero_prefetch = True, or"),
        (
            {**AHEAD, "reduce_bucket_size": 9},
            "valid: reduce_bucket_size = 0, or",
        ),
        (
            {**AHEAD, "dry_run": True, "hardware": "h100-80g", "dtype": "bf16"},
            "zero_engine = overlap is for ranks on CPUs",
        ),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    run = replace(RUN, method="tp_sp", world_size=2, seq_len=64)
    with pytest.raises(ValueError, match=r"valid|at least|multiple") as refused:
        checks.check(replace(run, **wrong))
    assert message in str(refused.value)
