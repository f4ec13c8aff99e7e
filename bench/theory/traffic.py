"""Closed forms of traffic: the bytes that every method sends in a step, exactly.

Their collectives are those of a block (:mod:`bench.theory.blocks`), of ZeRO-3, and of the edge.

Symbols: L sequence length, B micro batch, R ranks of the ring, T = B·L/R tokens of a micro step
on one sequence axis, d hidden size, i intermediate size, H query heads, G kv heads, K head_dim, n
ranks of the sequence axis, DP replicas, w bytes of the compute dtype, r bytes of the reduction
dtype. Where a second axis cuts weights, n and T are those of the axis that a term is about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from math import inf

from bench.theory import blocks, experts, vocabulary
from bench.theory.terms import Term, Traffic
from methods import method_of
from odysseus.config.architecture import Architecture
from odysseus.config.groups import Zero
from odysseus.config.parallelism import Parallelism
from odysseus.config.run import RunConfig
from odysseus.config.vocabulary import CHOICES
from odysseus.parallel.cuts import BY_EXPERT, Cuts, Place
from odysseus.parallel.sharding import cut_of, pieces
from odysseus.parallel.zero_buckets import bucket_widths


def step_traffic(run: RunConfig, rank: int = 0, load: experts.Load | None = None) -> Traffic:
    """Return every collective of one optimizer step of a rank. All send the same, unless Ulysses'
    heads do not divide or experts have unequal loads.

    Args:
        load: What ranks exchange for experts, if the method's MLP is expert; by default what the
            run's router_load says.
    """
    load = load or experts.load_of(run, rank)
    at = run.place(rank, run.cutting_axis)
    micro, layers = run.gradient_accumulation_steps, run.architecture.num_hidden_layers
    terms = [*_edge(run)]
    for repeat, part in (
        (
            micro * layers,
            [
                *(*blocks.activations(run, at), *blocks.ring(run, at), *blocks.visits(run)),
                *(*blocks.shared_kv_gradients(run), *experts.exchanges(run, load)),
            ],
        ),
        (micro, [*_zero(run, at), *_stream_edge(run)]),
    ):
        terms += [replace(term, count=term.count * repeat) for term in part]
    return Traffic(tuple(t for t in terms if t.ranks > 1))


Line = tuple[Fraction, Fraction]
"""(slope, fixed) of bytes slope·L + fixed."""


def line(run: RunConfig) -> Line:
    """Return the line of a step's bytes. ``vocab_parallel = auto`` is what it is at the run's own
    length."""
    if run.vocab_parallel == "auto":
        run = replace(run, vocab_parallel=CHOICES[run.vocabulary_text])
    unit = run.seq_len_unit
    lengths = (replace(run, seq_len=k * unit) for k in (1, 2))
    steps = (step_traffic(run, 0, experts.fractional_load_of(run, 0)) for run in lengths)
    low, high = (sum((t.bytes for t in step.terms), Fraction()) for step in steps)
    return (high - low) / unit, 2 * low - high


def crossing(one: Line, other: Line) -> float:
    """Return the length at which two lines meet; infinite if they never do."""
    return inf if one[0] == other[0] else float((other[1] - one[1]) / (one[0] - other[0]))


def lowest(lines: Mapping[str, Line], low: float, high: float = inf) -> list[tuple[float, str]]:
    """Return the name of the lowest line from each length to the next, the first being `low`."""

    def at(length: float, name: str) -> tuple[float, Fraction]:
        slope, fixed = lines[name]
        return float(slope) * length + float(fixed), slope

    borders = [(low, min(lines, key=lambda name: at(low, name)))]
    while True:
        length, name = borders[-1]
        flatter = [other for other in lines if lines[other][0] < lines[name][0]]
        meets = {other: crossing(lines[name], lines[other]) for other in flatter}
        after = {other: max(length, meet) for other, meet in meets.items() if meet < high}
        if not after:
            return borders
        name = min(after, key=lambda other: (after[other], lines[other][0]))
        borders.append((after[name], name))


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
    uncut = [name for name in block if _cut(run, name) is None]
    if all(name.endswith("norm.weight") for name in uncut):
        cut = [name for name in block if name not in uncut]
        units = [(cut, 2 * layers - kept, layers), (uncut * layers, 1, 1)]
    if a.tie_word_embeddings:
        units += [(head + table, 1, 1)]
    else:
        units += [([*head, "lm_head.weight"], 1, 1), (table, 1, 1)]
    for names, gathers, count in units:
        for kind in (0, BY_EXPERT, None):
            ranks = _zero_ranks(run, kind)
            members = [p for p in names if _cut(run, p) == kind]
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
    n = run.cutting_ranks
    positions = rows * run.seq_len // run.shards * n * 8
    if run.parts.attention in ("tp", "tp_sp") or run.tensor_parallel_size > 1:
        yield Term("all_gather", "edge", 1, positions, n)
    if method_of(run.method).replicated:
        stream = blocks.whole_stream_bytes(run)
        yield Term("all_gather", "edge", 1, stream, n)
        yield Term("reduce_scatter", "edge", 1, stream, n)
    yield from vocabulary.exchanges(run)
    a = run.architecture
    if a.router_aux_loss_coef or a.router_z_loss_coef:
        yield Term("all_reduce", "edge", 1, 8 * (2 * a.num_experts + 2), run.world_size)


def _edge(run: Parallelism) -> Iterator[Term]:
    """Yield a step's sums of the token count, the loss and the gradient norm, 8 bytes each."""
    yield Term("all_reduce", "edge", 3, 8, run.world_size)


def _zero_ranks(run: RunConfig, kind: int | None) -> int:
    """Return the number of ranks over which ZeRO shards parameters that are cut in this way."""
    sharing = {None: 1, BY_EXPERT: run.expert_ranks}.get(kind, run.cutting_ranks)
    return run.world_size // sharing


def _cut(run: RunConfig, parameter: str) -> int | None:
    """Return `BY_EXPERT` if experts are shared out, 0 if the parameter is cut, None if neither."""
    cut = cut_of(parameter, method_of(run.method).cuts(run))
    if cut == BY_EXPERT:
        return cut if run.expert_ranks > 1 else None
    return None if cut is None or run.cutting_ranks == 1 else 0


def _block_names(run: RunConfig) -> list[str]:
    """Return the names of one block's parameters, as in the first block."""
    a = run.architecture
    names = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    for mlp in _mlps(a):
        names += [f"{mlp}.gate_up_proj.weight", f"{mlp}.down_proj.weight"]
    names += ["mlp.gate.weight"] * (a.num_experts > 0)
    names += ["self_attn.qkv_proj.weight", "self_attn.o_proj.weight"]
    names += ["self_attn.qkv_proj.bias"] * a.attention_bias
    names += ["self_attn.o_proj.bias"] * a.attention_output_bias
    names += ["mlp.gate_up_proj.bias", "mlp.down_proj.bias"] * a.mlp_bias
    names += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"] * a.use_qk_norm
    return [f"model.layers.0.{name}" for name in names]


def _mlps(a: Architecture) -> list[str]:
    """Return the names of a block's MLPs; those of all experts are one."""
    shared = ["mlp.shared_experts"] * (a.shared_expert_intermediate_size > 0)
    return ["mlp.experts", *shared] if a.num_experts else ["mlp"]


def shard_elements(run: RunConfig) -> list[int]:
    """Return the elements of each parameter's shard on the first rank, with ZeRO's padding."""
    a = run.architecture
    names = _block_names(run) * a.num_hidden_layers
    names += ["model.norm.weight", "model.embed_tokens.weight"]
    names += ["lm_head.weight"] * (not a.tie_word_embeddings)
    elements = []
    for name in names:
        ranks = _zero_ranks(run, _cut(run, name))
        elements.append(_padded(run, name, ranks, 0) // ranks)
    return elements


def _padded(run: RunConfig, parameter: str, ranks: int, at: int) -> int:
    """Return the elements of a parameter before ZeRO, rows padded for its ranks, on the rank with
    number `at` of the axis that weights are cut over."""
    dimensions = method_of(run.method).cuts(run)
    cuts = Cuts(dimensions, Place(run.cutting_ranks, at), Place(run.expert_ranks))
    parts = pieces(parameter, run.architecture, cuts)
    rows = sum(piece.height for piece in parts)
    return -(-rows // ranks) * ranks * (parts[0].columns[1] - parts[0].columns[0])
