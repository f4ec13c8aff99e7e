"""Advice on options of a run that are valid but slow, or seldom meant."""

from __future__ import annotations

from odysseus.config.architecture import in_proportion
from odysseus.config.run import RunConfig

_MOST_BUCKETS = 1000
"""Collectives for one unit's gradients that take longer than what they save in memory is worth."""


def advice(run: RunConfig) -> list[str]:
    """Return lines about options that are valid but slow, or seldom meant."""
    return [
        *size_advice(run),
        *_length_advice(run),
        *_heads_advice(run),
        *_bucket_advice(run),
    ]


def size_advice(run: RunConfig) -> list[str]:
    """Return a line if ``hidden_size`` alone is overridden, so that other widths stay."""
    wanted = in_proportion(run.named_architecture, run.model.overrides)
    if not wanted:
        return []
    kept = ", ".join(f"{name} = {getattr(run.architecture, name)}" for name in wanted)
    scaled = ", ".join(f"{name} = {size}" for name, size in wanted.items())
    return [
        f"model.hidden_size = {run.architecture.hidden_size} keeps the other sizes of "
        f"{run.model.name_or_path}: {kept}; in proportion would be: {scaled}"
    ]


def _heads_advice(run: RunConfig) -> list[str]:
    heads, n = run.architecture.num_attention_heads, run.sequence_size
    if run.heads_divide or n > heads:  # the latter is refused
        return []
    most = max(len(queries) for queries, _ in run.head_shares)
    return [
        f"sequence_parallel_size = {n} does not divide the heads: the busiest rank computes "
        f"{most} of {heads}, {most * n / heads:.2f} times the mean"
    ]


def _bucket_advice(run: RunConfig) -> list[str]:
    a, bucket = run.architecture, run.reduce_bucket_size
    table = a.vocab_size * a.hidden_size
    if not bucket or run.world_size == 1 or table <= _MOST_BUCKETS * bucket:
        return []
    return [
        f"reduce_bucket_size = {bucket} reduces the gradients of the embedding alone in "
        f"{-(-table // bucket)} collectives; {-(-table // _MOST_BUCKETS)} would take "
        f"{_MOST_BUCKETS}"
    ]


def _length_advice(run: RunConfig) -> list[str]:
    unit = 256 * run.shards
    if run.seq_len % unit == 0:
        return []
    others = ("tensor_parallel_size", "ring_parallel_size")
    more = "".join(f" x {name}" for name in others if getattr(run, name) > 1)
    return [
        f"seq_len = {run.seq_len} is not a multiple of "
        f"256 x sequence_parallel_size{more} = {unit}; "
        f"kernels are fastest at {max(1, round(run.seq_len / unit)) * unit}"
    ]
