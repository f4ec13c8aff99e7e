"""Flags of runs that are quick."""

from __future__ import annotations

from odysseus.config.run import ModelOptions, RunConfig

SIZES = (
    "--model.hidden_size 32 --model.intermediate_size 48 --model.num_hidden_layers 2 "
    "--model.num_key_value_heads 4 --model.vocab_size 256 --seq_len 128 --micro_batch_size 2 "
    "--steps 2 --warmup_steps 1"
)


def nothing_starts(*_: object, **__: object) -> None:
    raise AssertionError("a cell was started")


LLAMA3_ON_4_GPUS = RunConfig(
    model=ModelOptions(name_or_path="llama3-8b", num_hidden_layers=8),
    world_size=4,
    seq_len=65536,
    dtype="bf16",
    dry_run=True,
    hardware="h100-80g",
)

THREE_BLOCKS = ModelOptions(
    num_hidden_layers=3,
    hidden_size=64,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=4,
)
OFFLOADED = RunConfig(
    model=THREE_BLOCKS,
    world_size=4,
    seq_len=256,
    dtype="bf16",
    activation_checkpoint_cpu_offload=True,
)

VERIFIED = (
    "--model.num_hidden_layers 2 --model.hidden_size 32 --model.intermediate_size 48 "
    "--world_size 4 --seq_len 72 --dtype fp64 --steps 3"
)
