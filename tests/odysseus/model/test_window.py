"""Attention to a sliding window and sinks equals the softmax over what the mask leaves."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from odysseus.model.attention import differentiable, local_attention, with_sinks
from odysseus.model.block_attention import CPU_FLASH
from odysseus.model.documents import Documents
from odysseus.model.window import Piece, WindowAttention, pieces


def pairs(piece: Piece) -> list[tuple[int, int]]:
    """The queries and keys that a piece computes."""
    found = []
    for turn in range(piece.count):
        for place, query in enumerate(piece.queries):
            for at, key in enumerate(piece.keys):
                seen = {"none": True, "causal": at <= place, "reversed": at >= place}[piece.mask]
                if seen:
                    found.append((query + turn * piece.stride, key + turn * piece.stride))
    return found


def test_pieces_have_every_visible_pair_once() -> None:
    """Every query and key of some ranges is tried. Masked pieces are square, as kernels need."""
    drawn = random.Random(0)
    for _ in range(3000):
        queries, keys = (
            range(start, start + drawn.randrange(1, 25))
            for start in (drawn.randrange(30), drawn.randrange(30))
        )
        window = drawn.randrange(1, 12)
        found = [*pieces(queries, keys, window)]
        counted = Counter(pair for piece in found for pair in pairs(piece))
        visible = {(q, k) for q in queries for k in keys if 0 <= q - k < window}
        assert counted == Counter(visible), (queries, keys, window)
        assert all(p.queries and p.keys for p in found)
        assert all(p.mask == "none" or len(p.queries) == len(p.keys) for p in found)


def test_a_long_sequence_takes_few_calls() -> None:
    assert len([*pieces(range(10_000), range(10_000), 16)]) == 3  # a first tile has none before it


def expected(
    q: Tensor, k: Tensor, v: Tensor, window: int, sinks: Tensor | None, starts: tuple[int, ...]
) -> Tensor:
    """The softmax written out, [B, S, H, K]."""
    tokens, group = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bshk,bthk->bhst", q, k) * q.shape[3] ** -0.5
    at = torch.arange(tokens)
    document = torch.searchsorted(torch.tensor(starts), at, right=True)
    back = at[:, None] - at
    seen = (back >= 0) & (back < window) & (document[:, None] == document)
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        column = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], -1)
    return torch.einsum("bhst,bthk->bshk", scores.softmax(-1)[..., :tokens], v)


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("starts", [(0,), (0, 5, 6, 30)], ids=["whole", "packed"])
@pytest.mark.parametrize("window", [1, 2, 7, 16, 50, 99])
def test_the_softmax_and_its_gradients(window: int, starts: tuple[int, ...], sinks: bool) -> None:
    torch.manual_seed(0)
    shapes = [(2, 50, 4, 8), (2, 50, 2, 8), (2, 50, 2, 8), (4,)]
    ours = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    plain = [x.detach().clone().requires_grad_() for x in ours]
    blocks = WindowAttention(CPU_FLASH.forward, CPU_FLASH.backward, window)
    attention = local_attention(blocks)
    attend = with_sinks(attention, ours[3]) if sinks else differentiable(attention)
    documents = None if len(starts) == 1 else Documents((starts, starts))
    o = attend(*ours[:3], documents=documents)
    o_plain = expected(*plain[:3], window, plain[3] if sinks else None, starts)
    assert (o - o_plain).abs().max() < 1e-12
    grad = torch.randn_like(o)
    o.backward(grad)
    o_plain.backward(grad)
    for x, y in zip(ours[: 3 + sinks], plain, strict=False):
        assert x.grad is not None
        assert y.grad is not None
        assert (x.grad - y.grad).abs().max() < 1e-12
