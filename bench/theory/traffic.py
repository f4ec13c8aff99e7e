"""Closed forms of traffic: the bytes that every method sends in a step, exactly.

Symbols: L sequence length, B micro batch, R ranks of the ring, T = B·L/R tokens of a micro step
on one sequence axis, d hidden size, i intermediate size, H query heads, G kv heads, K
head_dim, n ranks of the sequence axis, DP replicas, w bytes of the compute dtype, r bytes of the
reduction dtype.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf

import torch

from bench.meters.traffic import COLLECTIVES, PURPOSES, bytes_sent, equal_size
from bench.theory import heads, vocabulary
from methods import method_of
from odysseus.config.groups import Parallelism, Zero
from odysseus.config.run import RunConfig
from odysseus.memory.tiling import tile_count
from odysseus.parallel.sharding import is_cut, pieces
from odysseus.parallel.zero_buckets import bucket_widths


@dataclass(frozen=True)
class Term:
    """`count` collectives of one size on one group, in one optimizer step.

    Attributes:
        size_bytes: Bytes of the whole (gathered) tensor; for all_to_all and p2p, of this rank's.
        ranks: Size of the group.
    """

    collective: str
    purpose: str
    count: int
    size_bytes: int | Fraction
    ranks: int

    @property
    def bytes(self) -> Fraction:
        return self.count * bytes_sent(self.collective, self.size_bytes, self.ranks)


@dataclass(frozen=True)
class Traffic:
    """Traffic of one rank in one optimizer step."""

    terms: tuple[Term, ...]

    def bytes(self, *, collective: str = "", purpose: str = "") -> int:
        """Return the bytes of the matching terms, rounded once."""
        return round(
            sum(
                term.bytes
                for term in self.terms
                if collective in ("", term.collective) and purpose in ("", term.purpose)
            )
        )

    @property
    def total(self) -> int:
        return self.bytes()

    @property
    def columns(self) -> dict[str, int]:
        """The same columns that the traffic meter fills."""
        return (
            {"comm_bytes_total": self.total}
            | {f"comm_bytes_{c}": self.bytes(collective=c) for c in COLLECTIVES}
            | {f"comm_bytes_{p}": self.bytes(purpose=p) for p in PURPOSES}
            | {"comm_calls_total": sum(t.count for t in self.terms)}
        )


def step_traffic(run: RunConfig, rank: int = 0) -> Traffic:
    """Return every collective of one optimizer step of a rank. All send the same, unless Ulysses'
    heads do not divide."""
    at = run.place(rank, "sp")
    micro, layers = run.gradient_accumulation_steps, run.architecture.num_hidden_layers
    terms = [*_edge(run)]
    for repeat, part in (
        (
            micro * layers,
            [*block_activations(run, at), *_ring(run, at), *_shared_kv_gradients(run)],
        ),
        (micro, [*_zero(run, at), *_stream_edge(run)]),
    ):
        terms += [replace(term, count=term.count * repeat) for term in part]
    return Traffic(tuple(t for t in terms if t.ranks > 1))


def line(run: RunConfig) -> tuple[Fraction, Fraction]:
    """Return (slope, fixed) of a step's bytes slope·L + fixed."""
    unit = run.seq_len_unit
    lengths = (replace(run, seq_len=k * unit) for k in (1, 2))
    low, high = (
        sum((t.bytes for t in step_traffic(variant).terms), Fraction()) for variant in lengths
    )
    return (high - low) / unit, 2 * low - high


def crossing(one: tuple[Fraction, Fraction], other: tuple[Fraction, Fraction]) -> float:
    """Return the length at which two lines meet; infinite if they never do."""
    return inf if one[0] == other[0] else float((other[1] - one[1]) / (one[0] - other[0]))


def block_activations(run: RunConfig, at: int = 0) -> Iterator[Term]:
    """Yield the collectives of activations of one block in one micro step, forward and backward.

    With activation checkpointing the block's forward runs again in backward, up to the last
    tensor that backward needs. So its last all-reduce or reduce-scatter is not repeated (with
    chunks, only the last chunk's), nor is a tiled MLP.

    Args:
        at: The rank's number on the sequence axis.
    """
    again, n, chunks = int(run.recomputes), run.sequence_size, run.overlap_chunks
    if run.method == "ulysses" and not run.heads_divide:
        forward, backward = heads.uneven_exchanges(run, at)
        for count, sent in ((1 + again, forward), (1, backward)):
            for part in sent:
                yield Term("all_to_all", "activation", count, equal_size(part, n), n)
        return
    if run.method == "ulysses":
        to_heads, (size, calls) = heads.exchanges(run)
        yield Term("all_to_all", "activation", calls * (2 + again), size, n)
        passes = 2 + again + int(run.ulysses_head_chunks > 1)  # backward computes q, k and v again
        for size, calls in to_heads:
            yield Term("all_to_all", "activation", calls * passes, size, n)
        return
    stream = heads.tokens(run) * run.architecture.hidden_size * run.compute_dtype.itemsize // chunks
    closing = 2 * chunks + again * (chunks - 1)
    mlp = _mlp_tiles(run, stream)
    if run.method == "tp":
        # Megatron-LM (arXiv 1909.08053 §3): one all-reduce per half-block, forward and backward.
        yield Term("all_reduce", "activation", (2 + again) * chunks, stream, n)
        for size, count in mlp:
            passes = 3 if run.tiled_mlp_compute else closing
            yield Term("all_reduce", "activation", count * passes, size, n)
        return
    # Korthikanti et al. (arXiv 2205.05198 §4.2.2): a half-block gathers and scatters forward, does
    # the transposes backward, and gathers its input once more if it was not kept.
    gathers = (2 + int(run.regather) + again) * chunks
    yield Term("all_gather", "activation", gathers, stream, n)
    yield Term("reduce_scatter", "activation", (2 + again) * chunks, stream, n)
    if run.method == "odysseus":
        return
    # A tile runs forward, then forward again and backward, which uses the input that the second
    # forward gathered.
    gathers, scatters = (3, 3) if run.tiled_mlp_compute else (gathers, closing)
    for size, count in mlp:
        yield Term("all_gather", "activation", count * gathers, size, n)
        yield Term("reduce_scatter", "activation", count * scatters, size, n)


def _mlp_tiles(run: RunConfig, stream: int) -> list[tuple[int, int]]:
    """Return (bytes, count) of the parts of the stream that the MLP computes at a time."""
    tokens = run.ring_seq_len // (1 if run.method == "tp" else run.sequence_size)
    if not run.tiled_mlp_compute:
        return [(stream, 1)]
    tiles = tile_count(run.micro_batch_size, tokens, run.architecture.hidden_size)
    size = -(-tokens // tiles)
    full, rest = divmod(tokens, size)
    return [(stream * size // tokens, full), (stream * rest // tokens, int(rest > 0))]


def _ring(run: RunConfig, at: int) -> Iterator[Term]:
    """Yield one block's ring traffic.

    Keys and values are sent around the ring in forward (twice with checkpointing) and in backward.
    Their gradients are sent in at least fp32 (Liu et al., arXiv 2310.01889 §3, with grouped-query
    attention). yunchang sends k and v separately, and gradients around the whole ring: R hops
    instead of R - 1. The kv heads are sent around once for every chunk of query heads.
    """
    a, ring = run.architecture, run.ring_parallel_size
    elements = 2 * heads.tokens(run) * heads.kv_heads(run, at) * a.head_dim // heads.kv_chunks(run)
    chunks = run.ulysses_head_chunks
    passes, width = 2 + int(run.recomputes), run.compute_dtype.itemsize
    wide = torch.promote_types(run.compute_dtype, torch.float32).itemsize
    if run.ring_backend == "allgather":
        yield Term("all_gather", "activation", chunks * passes, ring * elements * width, ring)
        yield Term("reduce_scatter", "activation", chunks, ring * elements * wide, ring)
        return
    parts, return_hops = (2, 1) if run.ring_backend == "yunchang" else (1, 0)
    hops = chunks * (ring - 1)
    yield Term("p2p", "activation", parts * hops * passes, elements * width // parts, ring)
    yield Term("p2p", "activation", parts * (hops + return_hops), elements * wide // parts, ring)


def _shared_kv_gradients(run: RunConfig) -> Iterator[Term]:
    """Yield one block's all-reduce of k and v rows, which n/G ranks hold copies of if n > G."""
    a = run.architecture
    copies = max(1, run.sequence_size // a.num_key_value_heads)
    if "self_attn.k_proj" not in method_of(run.method).split:
        return
    row = 2 * a.head_dim * run.reduce_dtype.itemsize
    yield Term("all_reduce", "gradient", 1, row * a.hidden_size, copies)
    if a.attention_bias:
        yield Term("all_reduce", "gradient", 1, row, copies)


def _zero(run: RunConfig, at: int) -> Iterator[Term]:
    """Yield ZeRO-3's collectives of one micro step (Rajbhandari et al., arXiv 1910.02054 §7).

    A block's weights are gathered in forward, and again in backward unless they are kept (the
    overlapping engine keeps the last block's). The weights of the embedding and of the head are
    gathered once. Gradients are reduce-scattered once. Norms that are the only uncut weights form
    one unit for all blocks.
    """
    a, layers = run.architecture, run.architecture.num_hidden_layers
    kept = int(run.zero_engine == "overlap") if run.reshard_after_forward else layers
    block = _block_names(run)
    head = ["model.norm.weight"]
    table = ["model.embed_tokens.weight"]
    units = [(block, 2 * layers - kept, layers)]
    uncut = [name for name in block if not _is_cut(run, name)]
    if all(name.endswith("norm.weight") for name in uncut):
        cut = [name for name in block if name not in uncut]
        units = [(cut, 2 * layers - kept, layers), (uncut * layers, 1, 1)]
    if a.tie_word_embeddings:
        units += [(head + table, 1, 1)]
    else:
        units += [([*head, "lm_head.weight"], 1, 1), (table, 1, 1)]
    for names, gathers, count in units:
        for is_cut_group in (True, False):
            ranks = _zero_ranks(run, is_cut_group)
            members = [p for p in names if _is_cut(run, p) == is_cut_group]
            size = sum(_padded(run, p, ranks, at) for p in members)
            if not members:
                continue
            width, reduced = run.compute_dtype.itemsize, run.reduce_dtype.itemsize
            yield Term("all_gather", "parameter", gathers, size * width, ranks)
            for elements, parts in _reductions(run, size, ranks):
                yield Term("reduce_scatter", "gradient", count * parts, elements * reduced, ranks)


def _reductions(run: Zero, elements: int, ranks: int) -> list[tuple[int, int]]:
    """Return (elements, count) of the reductions of a unit's gradients."""
    if not run.reduce_bucket_size or ranks == 1:
        return [(elements, 1)]
    widths = bucket_widths(elements // ranks, run.reduce_bucket_size, ranks)
    return [(width * ranks, count) for width, count in Counter(widths).items()]


def _stream_edge(run: RunConfig) -> Iterator[Term]:
    """Yield a micro step's collectives outside blocks: position ids, the stream of `tp`, and what
    an embedding and a head that are cut by vocabulary exchange."""
    rows = run.micro_batch_size if run.data.pack else 1
    n, positions = run.sequence_size, rows * run.ring_seq_len * 8
    if run.method != "ulysses":
        yield Term("all_gather", "edge", 1, positions, n)
    if run.method == "tp":
        stream = heads.tokens(run) * run.architecture.hidden_size * run.compute_dtype.itemsize
        yield Term("all_gather", "edge", 1, stream, n)
        yield Term("reduce_scatter", "edge", 1, stream, n)
    for collective, count, size in vocabulary.exchanges(run):
        yield Term(collective, "edge", count, size, n)


def _edge(run: Parallelism) -> Iterator[Term]:
    """Yield a step's sums of the token count, the loss and the gradient norm, 8 bytes each."""
    yield Term("all_reduce", "edge", 3, 8, run.world_size)


def _zero_ranks(run: Parallelism, is_cut: bool) -> int:
    """Return the number of ranks over which ZeRO shards cut or uncut parameters."""
    return run.world_size // run.sequence_size if is_cut else run.world_size


def _is_cut(run: RunConfig, parameter: str) -> bool:
    return run.sequence_size > 1 and is_cut(parameter, method_of(run.method).cuts(run))


def _block_names(run: RunConfig) -> list[str]:
    """Return the names of one block's parameters, as in the first block."""
    a = run.architecture
    names = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    names += ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"]
    names += ["self_attn.qkv_proj.weight", "self_attn.o_proj.weight"]
    names += ["self_attn.qkv_proj.bias"] * a.attention_bias
    names += ["self_attn.o_proj.bias"] * a.attention_output_bias
    names += ["mlp.gate_up_proj.bias", "mlp.down_proj.bias"] * a.mlp_bias
    names += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"] * a.use_qk_norm
    return [f"model.layers.0.{name}" for name in names]


def shard_elements(run: RunConfig) -> list[int]:
    """Return the elements of each parameter's shard on the first rank, with ZeRO's padding."""
    a = run.architecture
    names = _block_names(run) * a.num_hidden_layers
    names += ["model.norm.weight", "model.embed_tokens.weight"]
    names += ["lm_head.weight"] * (not a.tie_word_embeddings)
    elements = []
    for name in names:
        ranks = _zero_ranks(run, _is_cut(run, name))
        elements.append(_padded(run, name, ranks, 0) // ranks)
    return elements


def _padded(run: RunConfig, parameter: str, ranks: int, at: int) -> int:
    """Return the elements of a parameter before ZeRO, rows padded for its ranks, on the rank with
    number `at` of the sequence axis."""
    cuts = method_of(run.method).cuts(run)
    parts = pieces(parameter, run.architecture, cuts, run.sequence_size, at)
    rows = sum(piece.height for piece in parts)
    return -(-rows // ranks) * ranks * (parts[0].columns[1] - parts[0].columns[0])
