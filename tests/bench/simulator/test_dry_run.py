"""One rank's dry run equals its real run exactly: bytes sent, bytes held and FLOPs.

The real ranks are gloo's on this CPU; the dry run has neither values nor peers.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import rows
from bench.__main__ import main
from bench.meters.memory import KINDS
from bench.simulator import dry_run
from bench.theory import memory as theory_memory
from bench.theory import traffic as theory_traffic
from methods import METHODS
from odysseus.config.run import ModelOptions, OptimizerOptions, RunConfig
from odysseus.parallel.sharding import huggingface_shapes
from tests.support.dry_run import check_all
from tests.support.marks import slow
from tests.support.runs import RUN, VARIANTS
from tests.support.toggles import ALL_ON, LOSS_TILES

METHODS_QUICK = [name if name == "ulysses" else slow(name) for name in METHODS]
BASE = replace(RUN, dtype="fp32", seq_len=80, tiled_loss_compute=False)
TOGGLES: list[dict[str, Any]] = [
    {},
    {"activation_checkpointing": True},
    {"activation_checkpoint_cpu_offload": True},
    {"tiled_mlp_compute": True},
    LOSS_TILES,
    LOSS_TILES | {"tiled_loss_engine": "checkpoint"},
    {"reduce_bucket_size": 1000},
    {"zero_prefetch": False},
    {"zero_engine": "overlap"},
    {"reshard_after_forward": False},
    {"optimizer": OptimizerOptions(offload="cpu")},
    {"parameter_offload": "cpu"},
    {"regather": False},
    {"gradient_accumulation_steps": 2},
    ALL_ON,
]


@pytest.mark.parametrize("method", [m if m == "odysseus" else slow(m) for m in METHODS])
def test_every_toggle_of_every_method(method: str) -> None:
    base = replace(BASE, method=method, world_size=2)
    wide = [replace(base, **toggles) for toggles in TOGGLES]
    check_all(wide + [replace(base, dtype="bf16", **toggles) for toggles in ({}, ALL_ON)], [0])


@pytest.mark.slow
@pytest.mark.parametrize("ring", [1, 2])
def test_chunks_of_heads(ring: int) -> None:
    """Chunks hold several kv heads, or a part of the heads that share one; also across a ring."""
    base = replace(BASE, method="ulysses", world_size=2 * ring, ring_parallel_size=ring)
    in_chunks = [
        replace(base, ulysses_head_chunks=c, dtype=d) for c in (2, 4) for d in ("fp32", "bf16")
    ]
    check_all([replace(run, **tricks) for run in in_chunks for tricks in ({}, ALL_ON)], [0])


def toggled(base: RunConfig) -> list[RunConfig]:
    """Every toggle in either dtype; on eight ranks in one of the two, in rings of four in the
    other."""
    one, other = (
        [replace(base, dtype=dtype, **toggles) for toggles in TOGGLES] for dtype in ("fp32", "bf16")
    )
    if base.world_size < 8:
        return one + other
    if base.ring_parallel_size == 4:
        one, other = other, one
    return one[::2] + other[1::2]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_every_toggle_in_either_dtype(method: str, world_size: int) -> None:
    check_all(toggled(replace(BASE, method=method, world_size=world_size)), [0])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("world_size", "ring"), [(2, 2), (8, 2), (8, 4)])
def test_hybrids_of_other_worlds(method: str, world_size: int, ring: int) -> None:
    base = replace(BASE, method=method, world_size=world_size, ring_parallel_size=ring)
    check_all(toggled(base), [0, world_size - 1])


@pytest.mark.parametrize("method", METHODS_QUICK)
@pytest.mark.parametrize("world_size", [4, slow(8)])
def test_every_rank_of_larger_worlds(method: str, world_size: int) -> None:
    base = replace(BASE, method=method, world_size=world_size, model=VARIANTS["ragged_rows"])
    in_bf16 = replace(base, dtype="bf16", **ALL_ON)
    check_all([base, replace(base, **ALL_ON), in_bf16], [0, 1, world_size - 1])


@pytest.mark.parametrize(
    ("method", "backend"),
    [
        ("odysseus", "native"),
        *(slow(name, "native") for name in METHODS if name != "odysseus"),
        *(slow(name, "allgather") for name in METHODS),
    ],
)
def test_every_hybrid(method: str, backend: str) -> None:
    base = replace(BASE, method=method, world_size=4, ring_parallel_size=2, ring_backend=backend)
    contiguous = replace(base, ring_order="contiguous", dtype="bf16")
    check_all([base, contiguous, replace(base, **ALL_ON)], [0, 3])


def test_explain_peak_says_where_it_is_and_what_is_alive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.csv"
    flags = "--dry_run true --explain_peak true --method tp_sp --world_size 2 --seq_len 1024"
    assert main(["run", *flags.split(), "--out", str(out)]) == 0
    where, header, *lines = capsys.readouterr().out.splitlines()
    row = rows.read(out).iloc[0]
    place = rf"rank {row['rank']}: {row['peak_memory_bytes']} bytes at \S+ in \w+ward .+"
    assert re.fullmatch(place, where)
    assert header.split() == ["MiB", "tensors", "kind", "made", "by"]
    largest = [(float(size), kind) for size, _, kind, *_ in map(str.split, lines[:10])]
    assert largest == sorted(largest, key=lambda line: -line[0])
    assert {kind for _, kind in largest} <= set(KINDS)
    assert 0 < sum(size for size, _ in largest) <= int(row["peak_memory_bytes"]) / 2**20


def test_a_world_of_thousands_sends_what_theory_says() -> None:
    run = replace(BASE, method="odysseus", world_size=4096, sequence_parallel_size=8)
    run = replace(run, ring_parallel_size=4, seq_len=1024)
    found = dry_run.count(run, 4095)
    assert found.traffic == theory_traffic.step_traffic(run).columns
    assert dry_run.count(run, 0).memory.peak("host").bytes == theory_memory.host_bytes(run) == 0


def test_before_backward_a_block_holds_its_input() -> None:
    run = replace(BASE, method="tp_sp", world_size=4, activation_checkpointing=True)
    deeper = replace(run, model=replace(run.model, num_hidden_layers=3))
    held = [dry_run.count(r, 0).memory.before_backward()["activations"] for r in (run, deeper)]
    assert held[1] - held[0] == theory_memory.stream_bytes(run)


@pytest.mark.parametrize("freed", [True, False])
def test_before_backward_kept_weights_are_all_blocks(freed: bool) -> None:
    run = replace(BASE, method="ulysses", world_size=4, reshard_after_forward=freed)
    deeper = replace(run, model=replace(run.model, num_hidden_layers=3))
    held = [dry_run.count(r, 0).memory.before_backward()["communication"] for r in (run, deeper)]
    shapes = huggingface_shapes(run.architecture).items()
    block = sum(math.prod(shape) for name, shape in shapes if ".layers.0." in name)
    assert held[1] - held[0] == (0 if freed else block * run.compute_dtype.itemsize)


def test_chunks_of_heads_lower_the_peak() -> None:
    """Peaks in streams of one rank, 1 GiB here.

    With four chunks: the block's input and the one before it, the output, the gradients of stream
    and output (5); k, v and their gradients by tokens, q, the gradients of o and q, and those of k
    and v (2.25); fp32 sums of dq (0.5) and of dk and dv (1); log-sum-exps and the rotary table
    (0.05).
    """
    model = ModelOptions(name_or_path="llama3-8b", num_hidden_layers=3)
    run = RunConfig(
        method="ulysses",
        model=model,
        world_size=8,
        seq_len=2**20,
        dtype="bf16",
        dry_run=True,
        hardware="h100-80g",
        activation_checkpoint_cpu_offload=True,
        tiled_mlp_compute=True,
    )
    whole, half, quarter = (
        dry_run.count(replace(run, ulysses_head_chunks=c), 0).peak.by_kind["activations"] / 2**30
        for c in (1, 2, 4)
    )
    assert (round(whole, 2), round(half, 2), round(quarter, 2)) == (13.07, 11.06, 8.8)
