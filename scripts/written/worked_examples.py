"""The drawings of docs/worked-examples.md, and the runs and numbers that the page states.

Each example has two ranks and sizes small enough to count by hand. Every number comes from the
closed forms of bench/theory; tests/docs/test_worked_examples.py holds the page to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from bench.theory import memory, traffic
from bench.theory.terms import Term
from odysseus.config.run import ModelOptions, RunConfig
from scripts.written.svg import box, document, text

MODEL = ModelOptions(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    vocab_size=256,
)
BASE = RunConfig(
    method="ulysses", world_size=2, seq_len=8, model=MODEL, tiled_loss_compute=False, dtype="fp32"
)

# One block, so that a step's all-to-alls are those of one attention.
CHUNKS = {
    chunks: replace(BASE, model=replace(MODEL, num_hidden_layers=1), ulysses_head_chunks=chunks)
    for chunks in (1, 2)
}
UNITS = {method: replace(BASE, method=method) for method in ("tp_sp", "ulysses")}

_LONG = replace(BASE, seq_len=512, model=replace(MODEL, num_hidden_layers=4, vocab_size=512))
_TILED_LOSS = replace(_LONG, tiled_loss_compute=True, tiled_loss_bytes=65536)
_CHECKPOINTED = replace(_TILED_LOSS, activation_checkpointing=True)
MOMENTS = {
    "no trick": _LONG,
    "tiled loss": _TILED_LOSS,
    "and checkpointing": _CHECKPOINTED,
    "and tiled MLP": replace(_CHECKPOINTED, tiled_mlp_compute=True),
}
"""Runs with one memory trick more each."""


def exchange_bytes(chunks: int) -> int:
    """Bytes that one rank sends in the all-to-alls of one attention, forward and backward."""
    return traffic.step_traffic(CHUNKS[chunks]).bytes(collective="all_to_all")


def zero_terms(method: str) -> list[Term]:
    """ZeRO's collectives of one step between the two ranks."""
    terms = traffic.step_traffic(UNITS[method]).terms
    return [term for term in terms if term.purpose in ("parameter", "gradient")]


def zero_calls(method: str) -> dict[str, int]:
    """ZeRO's collectives of one step between the two ranks, counted by kind."""
    terms = zero_terms(method)
    return {
        kind: sum(term.count for term in terms if term.collective == kind)
        for kind in ("all_gather", "reduce_scatter")
    }


# Attention in head chunks.

_CELL, _TOKENS, _HEADS, _KV_HEADS, _GAP = 11, 8, 8, 4, 10


def _grid(x: float, y: float, heads: int, filled: set[tuple[int, int]], kind: str) -> Iterator[str]:
    """Draw tokens downwards and heads to the right, with the filled (token, head) pairs in
    colour."""
    for token, head in sorted(filled):
        yield box(x + head * _CELL, y + token * _CELL, _CELL, _CELL, kind)
    for head in range(heads + 1):
        yield f'<path d="M{x + head * _CELL} {y}v{_TOKENS * _CELL}" class="frame"/>'
    for token in range(_TOKENS + 1):
        yield f'<path d="M{x} {y + token * _CELL}h{heads * _CELL}" class="frame"/>'


def _arrow(x: float, y: float, words: str) -> Iterator[str]:
    yield text(x + 36, y - 8, words, "small middle name")
    yield f'<path d="M{x + 8} {y}h52m-7 -5l7 5l-7 5" class="sent"/>'


def head_chunks() -> str:
    """The two chunks of heads of two ranks, before and after each exchange."""
    left, top, pitch = 92, 50, 104
    q_wide, kv_wide = _HEADS * _CELL, _KV_HEADS * _CELL
    pair, arrow = q_wide + _GAP + kv_wide, 72
    columns = (left, left + pair + arrow, left + 2 * (pair + arrow))
    lines = [
        text(columns[0] + q_wide / 2, 24, "q, projected", "small middle"),
        text(columns[0] + q_wide + _GAP + kv_wide / 2, 24, "k and v", "small middle"),
        text(columns[1] + q_wide / 2, 24, "q, exchanged", "small middle"),
        text(columns[1] + q_wide + _GAP + kv_wide / 2, 24, "k and v", "small middle"),
        text(columns[2] + q_wide / 2, 24, "output", "small middle"),
    ]
    for row in range(4):
        chunk, rank = divmod(row, 2)
        y = top + row * pitch + chunk * 16
        own_tokens = range(4 * rank, 4 * rank + 4)
        q_heads = [owner * 4 + chunk * 2 + h for owner in range(2) for h in range(2)]
        kv_heads = [owner * 2 + chunk for owner in range(2)]
        own_q, own_kv = q_heads[2 * rank : 2 * rank + 2], kv_heads[rank : rank + 1]
        if rank == 0:
            lines.append(text(12, y - 8, f"chunk {chunk}", "name"))
        lines.append(text(12, y + 48, f"rank {rank}", ""))
        for x, tokens, q, kv in (
            (columns[0], own_tokens, q_heads, kv_heads),
            (columns[1], range(_TOKENS), own_q, own_kv),
        ):
            lines += _grid(x, y, _HEADS, {(t, h) for t in tokens for h in q}, "held")
            kv_cells = {(t, h) for t in tokens for h in kv}
            lines += _grid(x + q_wide + _GAP, y, _KV_HEADS, kv_cells, "held")
        lines += _arrow(columns[0] + pair, y + 44, "all-to-all")
        lines += _arrow(columns[1] + pair, y + 34, "attention,")
        lines.append(text(columns[1] + pair + 36, y + 54, "all-to-all", "small middle name"))
        written = {(t, h) for t in own_tokens for h in (range(_HEADS) if chunk else q_heads)}
        lines += _grid(columns[2], y, _HEADS, written, "held")
    height = top + 4 * pitch + 16 + 18
    width = columns[2] + q_wide + 24
    legend = "down: the 8 tokens, across: the 8 query heads or 4 kv heads; filled: on this rank"
    lines.append(text(width / 2, height - 14, legend, "small middle"))
    return document(width, height, "Attention in two chunks of heads on two ranks", lines)


# ZeRO's units.


@dataclass(frozen=True)
class Span:
    """Times, in stages of the schedule, between which a unit's whole weights are on a rank."""

    start: float
    end: float
    gathered: bool = True
    reduced: bool = True


STAGES = ("embedding", "block 0", "block 1", "head", "head", "block 1", "block 0", "embedding")
"""Stages in the order of their computation: four of forward and four of backward."""
SCHEDULES: dict[str, dict[str, tuple[Span, ...]]] = {
    "tp_sp": {
        "root: all norms of blocks": (Span(0, 8),),
        "embedding": (Span(0, 1, reduced=False), Span(7, 8, gathered=False)),
        "block 0, cut weights": (Span(0, 8, gathered=False, reduced=False),),
        "block 1, cut weights": (Span(0, 8, gathered=False, reduced=False),),
        "last norm and head": (Span(3, 5),),
    },
    "ulysses": {
        "root: no weights": (),
        "embedding": (Span(0, 1, reduced=False), Span(7, 8, gathered=False)),
        "block 0": (Span(1, 2, reduced=False), Span(6, 7)),
        "block 1": (Span(2, 3, reduced=False), Span(5, 6)),
        "last norm and head": (Span(3, 5),),
    },
}
"""Spans of each unit, by method."""


def zero_units() -> str:
    """Draw the times at which each unit's weights are whole on a rank, for `tp_sp` and
    `ulysses`."""
    left, pitch, wide, top = 188, 30, 68, 56
    lines: list[str] = []
    y = top
    for method, units in SCHEDULES.items():
        lines.append(text(12, y - 14, method, "name"))
        for stage, name in enumerate(STAGES):
            lines.append(text(left + (stage + 0.5) * wide, y - 14, name, "small middle"))
        lines += [
            text(left + 2 * wide, y - 32, "forward", "small middle"),
            text(left + 6 * wide, y - 32, "backward", "small middle"),
        ]
        for row, (unit, spans) in enumerate(units.items()):
            at = y + row * pitch
            lines.append(text(12, at + 15, unit, "small"))
            lines.append(box(left, at, 8 * wide, 22))
            for span in spans:
                lines += _span(span, left, at, wide)
        lines.append(
            f'<path d="M{left + 4 * wide} {y - 40}v{40 + 5 * pitch}" class="residual zero"/>'
        )
        y += 5 * pitch + 72
    legend = "filled: whole on the rank; hatched: own part, used in place; G: all-gather before"
    lines.append(text(12, y - 46, f"{legend}, R: reduce-scatter of the gradient after", "small"))
    width = left + 8 * wide + 20
    return document(width, y - 28, "When ZeRO's units are gathered", lines)


def _span(span: Span, left: float, y: float, wide: float) -> Iterator[str]:
    start, end = left + span.start * wide, left + span.end * wide
    in_place = not (span.gathered or span.reduced)
    if in_place or span.gathered:
        kind = "part" if in_place else "held"
        yield box(start + 1, y + 1, end - start - 2, 20, kind)
    for shown, x, letter in ((span.gathered, start + 12, "G"), (span.reduced, end - 12, "R")):
        if shown:
            yield f'<circle cx="{x}" cy="{y + 11}" r="8" class="paper"/>'
            yield text(x, y + 15, letter, "small middle name")


# A collective carried through autograd.


def autograd_edge() -> str:
    """A started all-gather beside a matmul, in forward, and its transpose in backward."""
    left, wide, top = 96, 160, 50
    passes = (
        ("forward", "all-gather", ("start_all_gather", "another chunk's matmul", "wait()")),
        (
            "backward",
            "reduce-scatter",
            ("start's node waits", "that matmul's backward", "wait's node starts"),
        ),
    )
    lines: list[str] = []
    for row, (name, collective, steps) in enumerate(passes):
        y = top + row * 136
        lines.append(text(12, y - 22, name, "name"))
        lines += [text(12, y + 20, "computes", "small"), text(12, y + 62, "network", "small")]
        for at, step in enumerate(steps):
            kind = "held" if at == 1 else "frame"
            lines.append(box(left + at * (wide + 12), y, wide, 30, kind))
            style = "small middle" + (" paper" if at == 1 else "")
            lines.append(text(left + at * (wide + 12) + wide / 2, y + 19, step, style))
        start, end = left + wide - 24, left + 2 * (wide + 12) + 36
        lines.append(
            f'<rect x="{start}" y="{y + 44}" width="{end - start}" height="26" rx="12" '
            'class="sent"/>'
        )
        lines.append(text((start + end) / 2, y + 61, collective, "small middle name"))
        lines.append(f'<path d="M{start + 12} {y + 30}v14M{end - 12} {y + 44}v-14" class="sent"/>')
    y = top + 84
    x = left + 3 * (wide + 12) + 8
    lines.append(
        f'<path d="M{x - 8} {top + 15}h20V{top + 151}h-14m6 -5l-6 5l6 5" class="residual"/>'
    )
    lines.append(text(x + 18, y + 2, "loss", "small"))
    return document(x + 60, top + 228, "A collective in forward and in backward", lines)


# The moments of the memory formula.


def memory_moments() -> str:
    """Bytes of activations at each moment that can be the peak; each run has one trick more."""
    left, pitch, long, top = 250, 22, 420, 30
    most = max(memory.moments(MOMENTS["no trick"]).values())
    lines: list[str] = []
    y = top
    for name, run in MOMENTS.items():
        lines.append(text(12, y + 14, name, "name"))
        held = memory.moments(run)
        for moment, size in held.items():
            peak = size == max(held.values())
            lines.append(text(left - 10, y + 14, moment, 'small" text-anchor="end'))
            wide = round(long * size / most, 1)
            lines.append(box(left, y + 1, wide, 17, "held" if peak else "part"))
            lines.append(text(left + wide + 8, y + 14, f"{size:,}", "small"))
            y += pitch
        y += 12
    lines.append(text(12, y + 8, "bytes of activations on one rank; filled: the peak", "small"))
    return document(left + long + 90, y + 22, "The moments that can be the peak", lines)


Drawing = Literal["head_chunks", "zero_units", "autograd_edge", "memory_moments"]
DRAWINGS: dict[Drawing, Callable[[], str]] = {
    "head_chunks": head_chunks,
    "zero_units": zero_units,
    "autograd_edge": autograd_edge,
    "memory_moments": memory_moments,
}
