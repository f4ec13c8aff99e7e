"""What a run's numbers must satisfy, and what to say when they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from odysseus.config import RunConfig

_LOWEST = {
    "world_size": 1,
    "sequence_parallel_size": 0,
    "ring_parallel_size": 1,
    "seq_len": 1,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "reduce_bucket_size": 0,
    "host_memory_limit_bytes": 0,
    "tiled_loss_bytes": 1,
    "steps": 1,
    "warmup_steps": 0,
    "seed": 0,
    "timeout_s": 1,
}


def check(run: RunConfig) -> None:
    """Raise ValueError, naming the value and what would be valid, unless the numbers fit."""
    for name, least in _LOWEST.items():
        if getattr(run, name) < least:
            raise ValueError(f"{name} is {getattr(run, name)}; it must be at least {least}")
    if run.optimizer.learning_rate <= 0:
        raise ValueError(
            f"optimizer.learning_rate is {run.optimizer.learning_rate}; it must be above 0"
        )
    if run.compile and run.model.type == "liger":
        raise ValueError(
            "compile = true is not known to be right with model.type = liger, whose kernels "
            "write over their inputs; valid: model.type = torch, or compile = false"
        )
    if run.architecture.vocab_size < 256:
        raise ValueError(
            f"model.vocab_size is {run.architecture.vocab_size}; byte tokens need at least 256"
        )
    _check_axes(run)
    _check_sequence(run)


def _check_axes(run: RunConfig) -> None:
    """The axes fit the world, and the sequence axis the heads."""
    world, ring, n = run.world_size, run.ring_parallel_size, run.sequence_size
    if world % ring:
        raise ValueError(
            f"ring_parallel_size = {ring} does not divide world_size = {world}; "
            f"valid: {divisors(world)}"
        )
    heads, kv_heads = run.architecture.num_attention_heads, run.architecture.num_key_value_heads
    fitting = [s for s in divisors(heads) if kv_heads % s == 0 or s % kv_heads == 0]
    valid = [s for s in fitting if world // ring % s == 0]
    rings = [world // s for s in fitting if world % s == 0]
    if world // ring % n:
        given = f"world_size = {world}"
        if ring > 1:
            given += f" / ring_parallel_size = {ring}"
        raise ValueError(f"sequence_parallel_size = {n} does not divide {given}; valid: {valid}")
    if n in valid:
        return
    beside = f"; ring_parallel_size takes more ranks than there are heads, here {sorted(rings)}"
    if n > heads:
        raise ValueError(
            f"sequence_parallel_size = {n} is more than model.num_attention_heads = {heads}; "
            f"valid: {valid}{beside}"
        )
    raise ValueError(
        f"sequence_parallel_size = {n} does not fit model.num_attention_heads = {heads} "
        f"with model.num_key_value_heads = {kv_heads}; valid: {valid}{beside}"
    )


def _check_sequence(run: RunConfig) -> None:
    """Every rank gets as many tokens as every other."""
    unit, product = run.seq_len_unit, "sequence_parallel_size"
    if run.ring_parallel_size > 1:
        product = "2 x " * (unit > run.shards) + "ring_parallel_size x sequence_parallel_size"
    if run.seq_len % unit:
        raise ValueError(
            f"seq_len = {run.seq_len} does not divide by {product} = {unit}; "
            f"nearest valid: {nearest_multiples(run.seq_len, unit)}"
        )


def divisors(number: int) -> list[int]:
    """The divisors of a positive number, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def nearest_multiples(number: int, of: int) -> str:
    """The positive multiples on either side of a number that is none, as in "8 or 12"."""
    below = number // of * of
    return f"{below} or {below + of}" if below else f"{of}"
