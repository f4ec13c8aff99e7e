"""Attention a few heads at a time is the same attention: loss, every gradient, bytes sent.

At the tolerances of tests/support/toggles.py and to the byte.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from bench.__main__ import main
from bench.runner import worker
from bench.simulator import dry_run
from bench.theory import traffic as theory_traffic
from odysseus.config.run import RunConfig
from odysseus.parallel import ulysses_chunks
from tests.support.marks import slow
from tests.support.ranks import run_ranks
from tests.support.runs import VARIANTS
from tests.support.toggles import ALL_ON, BASE, check_all
from tests.support.traffic import measured_columns

BASE = replace(BASE, method="ulysses")
TRICKS: list[dict[str, Any]] = [
    {},
    {"activation_checkpointing": True},
    {"activation_checkpoint_cpu_offload": True},
    {"tiled_mlp_compute": True},
    {"tiled_mlp_compute": True, "activation_checkpointing": True},
    ALL_ON,
]


def variants(base: RunConfig, chunks: list[int]) -> list[RunConfig]:
    """Chunks that hold several kv heads, one, and a part of those that share one."""
    return [replace(base, ulysses_head_chunks=c, **tricks) for c in chunks for tricks in TRICKS]


@pytest.mark.parametrize("world_size", [slow(1), 2, slow(4)])
@pytest.mark.parametrize(
    "model", [slow("kv_heads_more_than_ranks"), "kv_heads_fewer_than_ranks", "qwen"]
)
def test_parity(world_size: int, model: str) -> None:
    """A rank has 8 / N query heads, and 4 / N kv heads or a copy of one."""
    base = replace(BASE, world_size=world_size, model=VARIANTS[model])
    check_all(variants(base, [c for c in (2, 4, 8) if 8 // world_size % c == 0]))


@pytest.mark.parametrize(("world_size", "tokens"), [slow(1, 601), slow(2, 1040), (4, 1100)])
def test_parity_in_tiles(world_size: int, tokens: int) -> None:
    """Batch 1, two or three tiles of projections, the last one ragged."""
    base = replace(BASE, world_size=world_size, micro_batch_size=1, seq_len=tokens)
    base = replace(base, model=VARIANTS["qwen"], ulysses_head_chunks=2)
    check_all([base, replace(base, **ALL_ON)])


@pytest.mark.parametrize("backend", ["native", slow("allgather")])
def test_parity_across_a_ring(backend: str) -> None:
    base = replace(BASE, world_size=4, seq_len=72, ring_parallel_size=2, ring_backend=backend)
    bases = [replace(base, ulysses_head_chunks=chunks) for chunks in (2, 4)]
    check_all([replace(b, **tricks) for b in bases for tricks in ({}, ALL_ON)])


def dtypes_of_sums(run: RunConfig) -> list[torch.dtype]:
    """The dtypes in which a step of this rank sums the gradients of k and v."""
    trainer, samples = worker.start(run, torch.device("cpu"))
    accumulate = ulysses_chunks._accumulate
    with patch.object(ulysses_chunks, "_accumulate", wraps=accumulate) as sums:
        trainer.forward_backward(samples.step(0))
    return [call.args[2] for call in sums.call_args_list]


def test_gradients_of_a_shared_key_add_up_in_fp32() -> None:
    """Two blocks: eight chunks that share one kv head, or four of four kv heads."""
    bf16 = replace(BASE, dtype="bf16", ulysses_head_chunks=4)
    shared = replace(bf16, model=VARIANTS["kv_heads_fewer_than_ranks"], ulysses_head_chunks=8)
    assert run_ranks(dtypes_of_sums, 1, shared) == [[torch.float32] * 16]
    assert run_ranks(dtypes_of_sums, 1, bf16) == [[torch.bfloat16] * 8]


@pytest.mark.slow
def test_parity_of_compiled_blocks() -> None:
    check_all(variants(replace(BASE, world_size=2, compile=True), [2]))


@pytest.mark.slow
def test_bytes_and_calls_equal_theory() -> None:
    base = replace(BASE, dtype="fp32", world_size=4, seq_len=64)
    model = VARIANTS["kv_heads_fewer_than_ranks"]
    runs = variants(replace(base, model=model), [2])
    for ring, chunks in ((2, 2), (4, 4)):
        hybrid = replace(base, ring_parallel_size=ring)
        runs += variants(hybrid, [chunks])[:3]
        runs += variants(replace(hybrid, ring_backend="allgather"), [chunks])[:1]
    expected = [theory_traffic.step_traffic(run).columns for run in runs]
    for measured in run_ranks(measured_columns, 4, runs):
        for run, columns, formula in zip(runs, measured, expected, strict=True):
            assert columns == formula, run


def test_a_step_sends_half_as_much_more_of_q_k_and_v() -> None:
    """Forward and its gradients are the same bytes; backward exchanges q, k and v once more."""
    whole = replace(BASE, dtype="fp32", world_size=2)
    in_chunks = theory_traffic.step_traffic(replace(whole, ulysses_head_chunks=4))
    qkv, o = 2 * (8 + 2 * 4), 2 * 8  # heads, there and back
    once = theory_traffic.step_traffic(whole).bytes(purpose="activation")
    assert in_chunks.bytes(purpose="activation") * (qkv + o) * 2 == once * (3 * qkv + 2 * o)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--method tp", "ulysses_head_chunks = 3 is for method = ulysses, not tp; valid: 1"),
        (
            "--method ulysses",
            "ulysses_head_chunks = 3 does not divide the 4 query and 2 kv heads of a rank; "
            "valid: 1, 2, 4",
        ),
        (
            "--method ulysses --ulysses_all_to_all yunchang",
            "ulysses_all_to_all = yunchang does not",
        ),
    ],
)
def test_bad_sizes(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = "--model.num_attention_heads 8 --model.num_key_value_heads 4 --world_size 2"
    assert main(["run", *f"{model} --ulysses_head_chunks 3 {flags}".split()]) == 2
    assert said in capsys.readouterr().err


def test_kernels_without_a_log_sum_exp_are_refused() -> None:
    in_chunks = replace(BASE, world_size=2, ulysses_head_chunks=2)
    ring = replace(in_chunks, ring_parallel_size=2, ring_backend="yunchang")
    with pytest.raises(ValueError, match="ring_backend = yunchang does not know"):
        ulysses_chunks.check(ring, torch.device("cpu"))
    with pytest.raises(ValueError, match="dtype = fp64 has no CUDA kernel for ulysses_head_chunks"):
        ulysses_chunks.check(in_chunks, torch.device("cuda"))
    odd = replace(in_chunks, model=replace(BASE.model, head_dim=12), dtype="bf16")
    with pytest.raises(
        ValueError, match="head_dim = 12 has no CUDA kernel for hardware = h100-80g"
    ):
        dry_run.check(replace(odd, dry_run=True, hardware="h100-80g"))
