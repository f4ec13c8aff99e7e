"""Draw docs/figures: the tensors that every rank holds in a block, and the worked examples.

python -m scripts.written.diagrams
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from scripts.written import worked_examples
from scripts.written.svg import document, text

FOLDER = Path(__file__).parents[2] / "docs" / "figures"
RANKS = 4

Held = Literal["tokens", "whole", "heads", "part"]
"""A rank's share of a tensor: some tokens with the whole width, the whole tensor, all tokens of
some heads, or a partial sum of the whole tensor."""


@dataclass(frozen=True)
class Tensor:
    """A tensor, with the share of it that every rank holds."""

    name: str
    held: Held


@dataclass(frozen=True)
class Compute:
    """A computation on one rank, and whether the method cuts its weights."""

    what: str
    weights: Literal["", "cut", "whole"] = ""


@dataclass(frozen=True)
class Send:
    """A collective of all ranks; `of` names the weights if it is one of ZeRO-3."""

    collective: str
    of: str = ""


Step = Tensor | Compute | Send

_PARTIAL_SUMS = Tensor("partial sums", "part")
_GATHER = (Compute("norm"), Send("all-gather"), Tensor("norm(x)", "whole"))
_SCATTER = (_PARTIAL_SUMS, Send("reduce-scatter"), Tensor("stream", "tokens"))
_REDUCE = (_PARTIAL_SUMS, Send("all-reduce"), Tensor("stream", "whole"))
_CUT_ATTENTION = (Tensor("heads", "heads"), Compute("output projection", "cut"))
_CUT_MLP = (Tensor("inner", "heads"), Compute("down projection", "cut"))
_QKV, _UP = "q, k, v projections, attention", "gate and up projections, SwiGLU"

ATTENTION: dict[str, tuple[Step, ...]] = {
    "all-reduce": (Compute(f"norm, {_QKV}", "cut"), *_CUT_ATTENTION, *_REDUCE),
    "gather": (*_GATHER, Compute(_QKV, "cut"), *_CUT_ATTENTION, *_SCATTER),
    "exchange": (
        Compute("norm, q, k, v projections", "whole"),
        Tensor("q, k, v", "tokens"),
        Send("all-to-all"),
        Tensor("q, k, v", "heads"),
        Compute("attention"),
        Tensor("heads", "heads"),
        Send("all-to-all"),
        Tensor("heads", "tokens"),
        Compute("output projection", "whole"),
        Tensor("stream", "tokens"),
    ),
}
MLP: dict[str, tuple[Step, ...]] = {
    "all-reduce": (Compute(f"norm, {_UP}", "cut"), *_CUT_MLP, *_REDUCE),
    "gather": (*_GATHER, Compute(_UP, "cut"), *_CUT_MLP, *_SCATTER),
    "local": (
        Compute(f"norm, {_UP}", "whole"),
        Tensor("inner", "tokens"),
        Compute("down projection", "whole"),
        Tensor("stream", "tokens"),
    ),
}
_ZERO = {"whole": "weights of the block", "cut": "weights of the MLP"}

METHODS: dict[str, tuple[Step, ...]] = {
    "tp": (Tensor("stream", "whole"), *ATTENTION["all-reduce"], *MLP["all-reduce"]),
    "tp_sp": (Tensor("stream", "tokens"), *ATTENTION["gather"], *MLP["gather"]),
    "ulysses": (
        Send("all-gather", _ZERO["whole"]),
        Tensor("stream", "tokens"),
        *ATTENTION["exchange"],
        *MLP["local"],
    ),
    "odysseus": (
        Send("all-gather", _ZERO["cut"]),
        Tensor("stream", "tokens"),
        *ATTENTION["gather"],
        *MLP["local"],
    ),
}
"""The forward of a block, step by step."""

# Sizes in pixels: of a tensor's picture, and from the left edge of one rank to the next.
_WIDTH, _HEIGHT, _PITCH, _LEFT, _RIGHT = 84, 36, 108, 100, 44
_PLACES = tuple(_LEFT + rank * _PITCH for rank in range(RANKS))
_SPAN = _PLACES[-1] + _WIDTH - _LEFT
_ROW = {Tensor: _HEIGHT + 10, Compute: 24, Send: 32}
_TOP, _LEGEND = 34, 30


def svg(steps: tuple[Step, ...], title: str) -> str:
    """The text of the SVG picture of a block."""
    width = _LEFT + RANKS * _PITCH + _RIGHT
    height = _TOP + sum(_ROW[type(step)] for step in steps) + _LEGEND
    middle = _LEFT + _SPAN / 2
    lines = [text(x + _WIDTH / 2, 22, f"rank {rank}", "middle") for rank, x in enumerate(_PLACES)]
    y, streams = _TOP, []
    for step in steps:
        if isinstance(step, Tensor):
            lines += _tensor(step, y)
            streams += [y + _HEIGHT / 2] * (step.name == "stream")
        elif isinstance(step, Compute):
            weights = f" ({step.weights} weights)" if step.weights else ""
            lines.append(text(middle, y + 13, f"↓ {step.what}{weights}", "middle small"))
        else:
            lines += _send(step, y, middle)
        y += _ROW[type(step)]
    lines += [_residual(*ends) for ends in pairwise(streams)]
    legend = "down: tokens, across: width or heads; filled: held, hatched: a part of a sum"
    lines.append(text(middle, y + 14, legend, "middle small"))
    return document(width, height, title, lines)


def _tensor(tensor: Tensor, y: float) -> Iterator[str]:
    yield f'<text x="8" y="{y + _HEIGHT / 2 + 5}">{tensor.name}</text>'
    for rank, x in enumerate(_PLACES):
        left, top, wide, high = {
            "tokens": (0, rank / RANKS, 1, 1 / RANKS),
            "heads": (rank / RANKS, 0, 1 / RANKS, 1),
        }.get(tensor.held, (0, 0, 1, 1))
        place = f'x="{x + left * _WIDTH}" y="{y + top * _HEIGHT}"'
        size = f'width="{wide * _WIDTH}" height="{high * _HEIGHT}"'
        kind = "part" if tensor.held == "part" else "held"
        yield f'<rect {place} {size} class="{kind}"/>'
        yield f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" class="frame"/>'


def _send(send: Send, y: float, middle: float) -> Iterator[str]:
    zero = " zero" if send.of else ""
    place = f'x="{_LEFT}" y="{y - 4}" width="{_SPAN}" height="24" rx="12"'
    yield f'<rect {place} class="sent{zero}"/>'
    name = f"{send.collective} of {send.of} (ZeRO-3)" if send.of else send.collective
    yield f'<text x="{middle}" y="{y + 12}" class="middle name">{name}</text>'


def _residual(start: float, end: float) -> str:
    x = _LEFT + _SPAN + 4
    path = f'<path d="M{x} {start + 3}h16V{end - 3}h-14" class="residual"/>'
    return f'{path}<text x="{x + 21}" y="{(start + end) / 2 + 4}">+</text>'


def main(folder: Path = FOLDER) -> None:
    """Write all diagrams."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, steps in METHODS.items():
        (folder / f"{name}.svg").write_text(svg(steps, f"A block of {name} on {RANKS} ranks"))
    for name, draw in worked_examples.DRAWINGS.items():
        (folder / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
