"""Closed forms of traffic in a block: what its attention, its MLP and a ring send.

Symbols as in bench/theory/traffic.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.meters.traffic import equal_size
from bench.theory import heads
from bench.theory.terms import Term
from methods import method_of
from odysseus.config.run import RunConfig
from odysseus.memory.tiling import tile_count


def activations(run: RunConfig, at: int = 0) -> Iterator[Term]:
    """Yield the collectives of activations of one block in one micro step, forward and backward.

    With activation checkpointing the block's forward runs again in backward, up to the last
    tensor that backward needs. So its last all-reduce or reduce-scatter is not repeated (with
    chunks, only the last chunk's), nor is a tiled MLP.

    Args:
        at: The rank's number on the sequence axis, where ranks have unequal heads.
    """
    attention, mlp = run.parts
    if attention == "ulysses":
        yield from _exchanges(run, at)
    if attention in ("tp", "tp_sp") or run.tensor_parallel_size > 1:
        yield from _cut_attention(run, attention)
    if mlp in ("tp", "tp_sp") or run.tensor_parallel_size > 1:
        yield from _cut_mlp(run, mlp)


def _exchanges(run: RunConfig, at: int) -> Iterator[Term]:
    """Yield the all-to-alls of one block with `ulysses` attention."""
    again, n = int(run.recomputes), run.sequence_size
    if not run.heads_divide:
        forward, backward = heads.uneven_exchanges(run, at)
        for count, sent in ((1 + again, forward), (1, backward)):
            for part in sent:
                yield Term("all_to_all", "activation", count, equal_size(part, n), n)
        return
    to_heads, (size, calls) = heads.exchanges(run)
    yield Term("all_to_all", "activation", calls * (2 + again), size, n)
    passes = 2 + again + int(run.ulysses_head_chunks > 1)  # backward computes q, k and v again
    for size, calls in to_heads:
        yield Term("all_to_all", "activation", calls * passes, size, n)


def _cut_attention(run: RunConfig, attention: str) -> Iterator[Term]:
    """Yield the collectives of one block's attention that is cut by heads.

    Megatron-LM (arXiv 1909.08053 §3): `tp` has one all-reduce per half-block, forward and backward.
    Korthikanti et al. (arXiv 2205.05198 §4.2.2): a half-block of `tp_sp` gathers and scatters
    forward, does the transposes backward, and gathers its input once more if it was not kept.
    """
    again, n, chunks = int(run.recomputes), run.cutting_ranks, run.overlap_chunks
    stream = whole_stream_bytes(run) // chunks
    if attention == "tp":
        yield Term("all_reduce", "activation", (2 + again) * chunks, stream, n)
        yield from _joined(run, stream, (1 + again) * chunks, chunks)
        return
    gathers = (2 + int(run.regather) + again) * chunks
    yield Term("all_gather", "activation", gathers, stream, n)
    yield Term("reduce_scatter", "activation", (2 + again) * chunks, stream, n)


def _cut_mlp(run: RunConfig, mlp: str) -> Iterator[Term]:
    """Yield the collectives of one block's MLP that is cut by its width; see
    :func:`_cut_attention`.

    A tile runs forward, then forward again and backward, which uses the input that the second
    forward gathered.
    """
    again, n, chunks = int(run.recomputes), run.cutting_ranks, run.overlap_chunks
    stream, tiled = whole_stream_bytes(run) // chunks, run.tiled_mlp_compute
    closing = 2 * chunks + again * (chunks - 1)
    for size, count in _mlp_tiles(run, stream):
        if mlp == "tp":
            yield Term("all_reduce", "activation", count * (3 if tiled else closing), size, n)
            gathers, scatters = (2, 1) if tiled else ((1 + again) * chunks, chunks)
            yield from _joined(run, size, count * gathers, count * scatters)
            continue
        regather = int(run.regather and not run.architecture.num_experts)
        kept = (2 + regather + again) * chunks
        gathers, scatters = (3, 3) if tiled else (kept, closing)
        yield Term("all_gather", "activation", count * gathers, size, n)
        yield Term("reduce_scatter", "activation", count * scatters, size, n)


def _joined(run: RunConfig, size: int, gathers: int, scatters: int) -> Iterator[Term]:
    """Yield what a part of a replicated stream gathers on a sequence shard: its input, whose
    gradient it reduce-scatters (:mod:`methods.pairs`)."""
    if not method_of(run.method).replicated:
        yield Term("all_gather", "edge", gathers, size, run.cutting_ranks)
        yield Term("reduce_scatter", "edge", scatters, size, run.cutting_ranks)


def whole_stream_bytes(run: RunConfig) -> int:
    """Return the bytes of the stream of a micro step on the ranks that weights are cut over."""
    tokens = run.local_tokens * run.cutting_ranks
    return tokens * run.architecture.hidden_size * run.compute_dtype.itemsize


def _mlp_tiles(run: RunConfig, stream: int) -> list[tuple[int, int]]:
    """Return (bytes, count) of the parts of the stream that the MLP computes at a time."""
    is_whole = method_of(run.method).replicated
    tokens = run.seq_len // run.shards * (run.cutting_ranks if is_whole else 1)
    if not run.tiled_mlp_compute:
        return [(stream, 1)]
    tiles = tile_count(run.micro_batch_size, tokens, run.architecture.hidden_size)
    size = -(-tokens // tiles)
    full, rest = divmod(tokens, size)
    return [(stream * size // tokens, full), (stream * rest // tokens, int(rest > 0))]


def ring(run: RunConfig, at: int) -> Iterator[Term]:
    """Yield one block's ring traffic.

    Keys and values are sent around the ring in forward (twice with checkpointing) and in backward.
    Their gradients are sent in at least fp32 (Liu et al., arXiv 2310.01889 §3, with grouped-query
    attention). yunchang sends k and v separately, and gradients around the whole ring: R hops
    instead of R - 1. The kv heads are sent around once for every chunk of query heads; with `tsp`
    attention those of each rank in turn, and the ring is the sequence axis.
    """
    a, (ranks, within) = run.architecture, run.token_axes
    tokens = run.local_tokens * within
    elements = 2 * tokens * heads.kv_heads(run, at) * a.head_dim // heads.kv_chunks(run)
    chunks = ranks if run.parts.attention == "tsp" else run.ulysses_head_chunks
    passes, width = 2 + int(run.recomputes), run.compute_dtype.itemsize
    wide = torch.promote_types(run.compute_dtype, torch.float32).itemsize
    if run.ring_backend == "allgather":
        yield Term("all_gather", "activation", chunks * passes, ranks * elements * width, ranks)
        yield Term("reduce_scatter", "activation", chunks, ranks * elements * wide, ranks)
        return
    parts, return_hops = (2, 1) if run.ring_backend == "yunchang" else (1, 0)
    sent, hops = parts * chunks, ranks - 1
    yield Term("p2p", "activation", sent * hops * passes, elements * width // parts, ranks)
    yield Term("p2p", "activation", sent * (hops + return_hops), elements * wide // parts, ranks)


def visits(run: RunConfig) -> Iterator[Term]:
    """Yield what one block with `tsp` parts sends of its weights (Shyam et al., arXiv 2604.26294).

    Every rank's part of attention's weights is broadcast in forward and in backward, and its
    gradient is summed at the owner; the parts of the MLP go around the ranks as often.
    """
    a, n, again = run.architecture, run.sequence_size, int(run.recomputes)
    width, reduced = run.compute_dtype.itemsize, run.reduce_dtype.itemsize
    attention, mlp = run.parts
    if attention == "tsp":
        rows = (a.num_attention_heads // n + 2 * heads.kv_heads(run, 0)) * a.head_dim
        of_qkv = rows * (a.hidden_size + int(a.attention_bias))
        of_output = a.hidden_size * a.query_width // n
        for part in (of_qkv, of_output):
            yield Term("broadcast", "parameter", n * (2 + again), part * width, n)
            yield Term("reduce", "gradient", n, part * reduced, n)
    if mlp == "tsp":
        part = 3 * a.hidden_size * a.intermediate_size // n
        part += 2 * a.intermediate_size // n * int(a.mlp_bias)
        yield Term("p2p", "parameter", (n - 1) * (2 + again), part * width, n)
        yield Term("p2p", "gradient", n - 1, part * reduced, n)


def shared_kv_gradients(run: RunConfig) -> Iterator[Term]:
    """Yield one block's all-reduce of k and v rows, which n/G ranks hold copies of if n > G."""
    a = run.architecture
    copies = max(1, run.cutting_ranks // a.num_key_value_heads)
    if "self_attn.k_proj" not in method_of(run.method).cuts(run):
        return
    row = 2 * a.head_dim * run.reduce_dtype.itemsize
    yield Term("all_reduce", "gradient", 1, row * a.hidden_size, copies)
    if a.attention_bias:
        yield Term("all_reduce", "gradient", 1, row, copies)
