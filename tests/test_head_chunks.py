"""Attention a few heads at a time is the same attention: loss, every gradient, bytes sent.

At the tolerances of tests/test_toggles.py and to the byte.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench import theory
from bench.__main__ import main
from odysseus.config import RunConfig
from tests.ranks import run_ranks
from tests.test_parity import VARIANTS
from tests.test_toggles import ALL_ON, BASE, check_all
from tests.test_traffic import measured_columns

BASE = replace(BASE, method="ulysses")
TRICKS: list[dict[str, Any]] = [
    {},
    {"activation_checkpointing": True},
    {"activation_checkpoint_cpu_offload": True},
    {"tiled_mlp_compute": True},
    {"tiled_mlp_compute": True, "activation_checkpointing": True},
    ALL_ON,
    ALL_ON | {"gradient_accumulation_steps": 1, "micro_batch_size": 2},
]


def variants(base: RunConfig, chunks: list[int]) -> list[RunConfig]:
    """Chunks that hold several kv heads, one, and a part of those that share one."""
    return [replace(base, ulysses_head_chunks=c, **tricks) for c in chunks for tricks in TRICKS]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("model", ["kv_heads_more_than_ranks", "kv_heads_fewer_than_ranks", "qwen"])
def test_parity(world_size: int, model: str) -> None:
    """A rank has 8 / N query heads, and 4 / N kv heads or a copy of one."""
    base = replace(BASE, world_size=world_size, model=VARIANTS[model])
    check_all(variants(base, [c for c in (2, 4, 8) if 8 // world_size % c == 0]))


@pytest.mark.parametrize("backend", ["native", "allgather"])
def test_parity_across_a_ring(backend: str) -> None:
    base = replace(BASE, world_size=4, seq_len=72, ring_parallel_size=2, ring_backend=backend)
    check_all(variants(base, [2, 4])[::3])


@pytest.mark.slow
def test_parity_of_compiled_blocks() -> None:
    check_all(variants(replace(BASE, world_size=2, compile=True), [2]))


def test_bytes_and_calls_equal_theory() -> None:
    base = replace(BASE, dtype="fp32", world_size=4, seq_len=64)
    models = [VARIANTS[name] for name in ("qwen", "kv_heads_fewer_than_ranks")]
    runs = [replace(run, model=model) for model in models for run in variants(base, [2])]
    for ring, chunks in ((2, 2), (2, 4), (4, 4)):
        hybrid = replace(base, ring_parallel_size=ring)
        runs += variants(hybrid, [chunks])[:3]
        runs += variants(replace(hybrid, ring_backend="allgather"), [chunks])[:1]
    expected = [theory.step_traffic(run).columns for run in runs]
    for measured in run_ranks(measured_columns, 4, runs):
        for run, columns, formula in zip(runs, measured, expected, strict=True):
            assert columns == formula, run


def test_a_step_sends_half_as_much_more_of_q_k_and_v() -> None:
    """Forward and its gradients are the same bytes; backward exchanges q, k and v once more."""
    whole = replace(BASE, dtype="fp32", world_size=2)
    in_chunks = theory.step_traffic(replace(whole, ulysses_head_chunks=4))
    qkv, o = 2 * (8 + 2 * 4), 2 * 8  # heads, there and back
    once = theory.step_traffic(whole).bytes(purpose="activation")
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
def test_bad_input(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = "--model.num_attention_heads 8 --model.num_key_value_heads 4 --world_size 2"
    assert main(["run", *f"{model} --ulysses_head_chunks 3 {flags}".split()]) == 2
    assert said in capsys.readouterr().err
