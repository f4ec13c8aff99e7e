"""Refusals of a configuration name the key, the value and what is valid; derived properties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from methods import METHODS
from odysseus.config.nested import ModelOptions, OptimizerOptions
from odysseus.config.run import RunConfig
from tests.support.refusals import check, refusal


def model(**overrides: Any) -> ModelOptions:
    return ModelOptions(**overrides)


# The tiny preset has 8 query heads, 4 kv heads of 32, hidden 256 and intermediate 768.
REFUSED: dict[str, tuple[RunConfig, str]] = {
    "unknown preset": (
        RunConfig(model=model(name_or_path="llama9")),
        "model.name_or_path is 'llama9'; valid presets: "
        "tiny, small, llama2-7b, llama3-8b, llama3-70b, qwen3-32b, mixtral-8x7b, qwen3-30b-a3b; "
        "or a folder with a Hugging Face checkpoint",
    ),
    "vocabulary": (
        RunConfig(model=model(vocab_size=255)),
        "model.vocab_size is 255; byte tokens need at least 256",
    ),
    "learning rate": (
        RunConfig(optimizer=OptimizerOptions(learning_rate=0.0)),
        "optimizer.learning_rate is 0.0; it must be above 0 and finite",
    ),
    "kv heads": (
        RunConfig(model=model(num_key_value_heads=3)),
        "model.num_key_value_heads is 3; it must divide model.num_attention_heads = 8",
    ),
    "hidden size and heads": (
        RunConfig(model=model(hidden_size=100)),
        "model.hidden_size = 100 does not divide by model.num_attention_heads = 8; "
        "set model.head_dim or change one of them",
    ),
    "odd head": (
        RunConfig(model=model(head_dim=33)),
        "model.head_dim is 33; rotary embedding needs an even head_dim",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    run, message = REFUSED[name]
    assert refusal(run) == message


# Refused sizes: the run, what is said first, and the sizes that it should call valid.
TWELVE_HEADS = model(num_attention_heads=12, hidden_size=240, num_key_value_heads=6)
SIZES: dict[str, tuple[RunConfig, str, list[int]]] = {
    "world size": (
        RunConfig(world_size=6, sequence_parallel_size=4),
        "sequence_parallel_size = 4 does not divide world_size = 6",
        [1, 2],  # 3 and 6 divide 6, but not 8 heads.
    ),
    "more ranks than heads": (
        RunConfig(world_size=16),
        "sequence_parallel_size = 16 is more than model.num_attention_heads = 8",
        [1, 2, 4, 8],
    ),
    "heads": (
        RunConfig(world_size=6, seq_len=1020),
        "sequence_parallel_size = 6 does not fit model.num_attention_heads = 8 "
        "with model.num_key_value_heads = 4",
        [1, 2],  # 4 and 8 divide 8 heads, but not 6.
    ),
    "kv heads": (
        RunConfig(world_size=12, sequence_parallel_size=4, seq_len=1020, model=TWELVE_HEADS),
        "sequence_parallel_size = 4 does not fit model.num_attention_heads = 12 "
        "with model.num_key_value_heads = 6",
        [1, 2, 3, 6, 12],
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_refused_sizes(name: str) -> None:
    run, said, valid = SIZES[name]
    told = refusal(run).removesuffix("; ring_parallel_size splits a sample over more")
    told = told.removesuffix("; method = ulysses also takes others")
    assert told.partition("; ")[::2] == (said, f"valid: {valid}")
    for size in range(1, run.world_size + 1):
        other = replace(run, sequence_parallel_size=size, seq_len=27_720)  # Divides by 1 to 12.
        if size in valid:
            check(other)
        else:
            refusal(other)


@pytest.mark.parametrize(
    ("seq_len", "ranks", "nearest"),
    [(1022, 4, "1020 or 1024"), (1023, 8, "1016 or 1024"), (3, 4, "4"), (1, 8, "8")],
)
def test_refused_sequence_lengths(seq_len: int, ranks: int, nearest: str) -> None:
    assert refusal(RunConfig(world_size=ranks, seq_len=seq_len)) == (
        f"seq_len = {seq_len} does not divide by sequence_parallel_size = {ranks}; "
        f"nearest valid: {nearest}"
    )


@pytest.mark.parametrize(("width", "nearest"), [(766, "764 or 768"), (767, "764 or 768"), (3, "4")])
@pytest.mark.parametrize("method", METHODS)
def test_only_methods_that_cut_the_mlp_refuse_its_width(
    method: Any, width: int, nearest: str
) -> None:
    run = RunConfig(method=method, world_size=4, model=model(intermediate_size=width))
    if method in ("ulysses", "odysseus"):
        check(run)
    else:
        assert refusal(run) == (
            f"model.intermediate_size = {width} does not divide by sequence_parallel_size = 4, "
            f"which method = {method} needs; nearest valid: {nearest}"
        )


@pytest.mark.parametrize(
    ("name", "least"),
    {
        "world_size": 1,
        "sequence_parallel_size": 0,
        "seq_len": 1,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "steps": 1,
        "warmup_steps": 0,
        "seed": 0,
        "timeout_s": 1,
        "reduce_bucket_size": 0,
        "host_memory_limit_bytes": 0,
        "tiled_loss_bytes": 1,
        "ring_parallel_size": 1,
        "overlap_chunks": 1,
        "ulysses_head_chunks": 1,
        "rank": -1,
    }.items(),
)
def test_lowest_values(name: str, least: int) -> None:
    RunConfig(**{name: least}).check()
    for value in (least - 1, -7):
        expected = f"{name} is {value}; it must be at least {least}"
        assert refusal(RunConfig(**{name: value})) == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_sizes_up_to_the_heads_are_valid(method: Any, size: int) -> None:
    """More ranks than kv heads too, and a world of two replicas."""
    check(RunConfig(method=method, world_size=2 * size, sequence_parallel_size=size))


def test_sizes_that_follow_from_others() -> None:
    run = RunConfig(
        world_size=8,
        sequence_parallel_size=2,
        seq_len=512,
        micro_batch_size=3,
        gradient_accumulation_steps=5,
    )
    assert (run.sequence_size, run.data_parallel_size) == (2, 4)
    assert (run.samples_per_step, run.tokens_per_step) == (60, 30_720)
    alone = replace(run, sequence_parallel_size=0)
    assert (alone.sequence_size, alone.data_parallel_size) == (8, 1)
    assert alone.tokens_per_step == 7680


@pytest.mark.parametrize(
    ("dtype", "travels", "compute", "master", "reduce"),
    [
        ("fp32", "fp32", torch.float32, torch.float32, torch.float32),
        ("fp32", "bf16", torch.float32, torch.float32, torch.bfloat16),
        ("bf16", "fp32", torch.bfloat16, torch.float32, torch.float32),
        ("bf16", "bf16", torch.bfloat16, torch.float32, torch.bfloat16),
        ("fp64", "fp32", torch.float64, torch.float64, torch.float64),
    ],
)
def test_dtypes(
    dtype: Any, travels: Any, compute: torch.dtype, master: torch.dtype, reduce: torch.dtype
) -> None:
    run = RunConfig(dtype=dtype, seq_parallel_communication_data_type=travels)
    assert (run.compute_dtype, run.master_dtype, run.reduce_dtype) == (compute, master, reduce)


def test_what_implies_what() -> None:
    """Offloaded inputs are checkpoints, and the loss is tiled where the sequence is split."""
    default, split = RunConfig(), RunConfig(world_size=4, sequence_parallel_size=2)
    assert (default.recomputes, default.optimizer_on_host, default.tiles_loss) == (False,) * 3
    assert RunConfig(activation_checkpoint_cpu_offload=True).recomputes
    assert RunConfig(parameter_offload="cpu").optimizer_on_host
    assert split.tiles_loss
    assert not replace(split, tiled_loss_compute=False).tiles_loss
    engines = {("auto", "torch"): "fused", ("auto", "liger"): "liger", ("torch", "liger"): "torch"}
    for (engine, kind), meant in engines.items():
        run = RunConfig(tiled_loss_engine=engine, model=model(type=kind))
        assert run.loss_engine == meant
