"""Attention to a sliding window: a query sees its own key and the window - 1 keys before it.

Kernels know two masks: none, and the causal one. With W the window, cut the queries into tiles of W
tokens. A tile's own keys are behind the causal mask. Of the W - 1 keys before the tile, the query
at place a sees those from place a on: the causal mask, if queries and keys are read backwards. So
two kernel calls compute all whole tiles, and a few more what is left at the edges of documents and
of ring ranks' chunks. Their results merge by their log-sum-exp, in at least fp32.

B batch, S query tokens, T key tokens, H query heads, G kv heads, K elements per head, n tiles of t
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odysseus.model.block_attention import BlockAttention, merge_
from odysseus.model.documents import Documents, Span

_NONE, _CAUSAL, _REVERSED = "none", "causal", "reversed"


@dataclass(frozen=True)
class Piece:
    """Queries and keys of one kernel call, repeated at every `stride` tokens.

    Attributes:
        queries: The first repetition's queries.
        keys: The first repetition's keys.
        mask: none; causal; or reversed, if the query at place a sees the keys from place a on.
        count: How often it is repeated.
        stride: Tokens from one repetition to the next, of queries and of keys.
    """

    queries: range
    keys: range
    mask: str
    count: int = 1
    stride: int = 0

    def moved(self, queries: int, keys: int) -> Piece:
        """The same piece, its queries and its keys some tokens further on."""

        def further(x: range, by: int) -> range:
            return range(x.start + by, x.stop + by)

        return replace(self, queries=further(self.queries, queries), keys=further(self.keys, keys))


def pieces(queries: range, keys: range, window: int) -> Iterator[Piece]:
    """Yield pieces that have every pair of a query and a key that it sees, once.

    Args:
        queries: Positions of queries in a document.
        keys: Positions of keys in the same document.
        window: Tokens that a query sees, its own included.
    """
    start = max(queries.start, keys.start)
    stop = min(queries.stop, keys.stop - 1 + window)
    keys = range(max(keys.start, start - window + 1), min(keys.stop, stop))
    while start < stop:
        count = (min(stop, keys.stop) - start) // window if start - window + 1 >= keys.start else 0
        if count > 1:
            own, before = range(start, start + window), range(start - window + 1, start)
            yield Piece(own, own, _CAUSAL, count, window)
            if before:
                yield Piece(own[:-1], before, _REVERSED, count, window)
            start += count * window
        else:
            tile = range(start, min(start + window, stop))
            yield from _own_keys(tile, keys)
            yield from _earlier_keys(tile, keys, window)
            start = tile.stop


def _own_keys(tile: range, keys: range) -> Iterator[Piece]:
    """Yield the pieces of a tile's queries and of keys at the same positions."""
    keys = range(max(keys.start, tile.start), min(keys.stop, tile.stop))
    if keys:
        yield Piece(keys, keys, _CAUSAL)
        if keys.stop < tile.stop:
            yield Piece(range(keys.stop, tile.stop), keys, _NONE)


def _earlier_keys(tile: range, keys: range, window: int) -> Iterator[Piece]:
    """Yield the pieces of a tile's queries and of keys before the tile."""
    back = window - 1
    keys = range(max(keys.start, tile.start - back), min(keys.stop, tile.start))
    if not keys:
        return

    def queries(start: int, stop: int) -> range:
        return range(start + back, stop + back)

    # Queries by the first key that they see.
    first, last = tile.start - back, tile.stop - back
    if first < min(last, keys.start):
        yield Piece(queries(first, min(last, keys.start)), keys, _NONE)
    start, stop = max(first, keys.start), min(last, keys.stop)
    if start < stop:
        yield Piece(queries(start, stop), range(start, stop), _REVERSED)
        if stop < keys.stop:
            yield Piece(queries(start, stop), range(stop, keys.stop), _NONE)


@dataclass(frozen=True)
class WindowAttention(BlockAttention):
    """Attention to the keys of one block that a window allows.

    Attributes:
        window: Tokens that a query sees, its own included.
    """

    window: int

    def spans(
        self,
        documents: Documents | None,
        batch: int,
        positions: Callable[[], tuple[np.ndarray, np.ndarray]],
    ) -> Iterator[tuple[slice, Piece]]:
        """Yield rows of the batch, and a piece of their queries and keys."""
        queries, keys = positions()
        whole = Span(slice(0, batch), slice(0, len(queries)), slice(0, len(keys)))
        for span in [whole] if documents is None else documents.spans(queries, keys):
            for q_place, q_run in _runs(queries, span.queries):
                for k_place, k_run in _runs(keys, span.keys):
                    for piece in pieces(q_run, k_run, self.window):
                        yield span.row, piece.moved(q_place - q_run.start, k_place - k_run.start)

    def forward_within(
        self, spans: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool
    ) -> tuple[Tensor, Tensor]:
        """Return o, in at least fp32, and its log-sum-exp.

        A query that sees no key gets o = 0 and a log-sum-exp of minus infinity.
        """
        wide = torch.promote_types(q.dtype, torch.float32)
        o = torch.zeros_like(q, dtype=wide)
        logsumexp = q.new_full((q.shape[0], q.shape[2], q.shape[1]), -torch.inf, dtype=wide)
        for row, piece in spans:
            at_q, at_k = (row, piece.queries, piece), (row, piece.keys, piece)
            reverse = piece.mask == _REVERSED
            q_t, k_t, v_t = (
                _reversed_if(_tiles(x, *at), reverse) for x, at in ((q, at_q), (k, at_k), (v, at_k))
            )
            part, part_logsumexp = self.forward(q_t, k_t, v_t, piece.mask != _NONE)
            if reverse:
                part, part_logsumexp = part.flip(1), part_logsumexp.flip(2)
            merge_(
                _repetitions(o, *at_q),
                _repetitions(logsumexp.transpose(1, 2), *at_q).transpose(2, 3),
                part.unflatten(0, (-1, piece.count)),
                part_logsumexp.unflatten(0, (-1, piece.count)),
            )
        return o, logsumexp

    def backward_within(
        self, spans: Any, grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor,
        o: Tensor, logsumexp: Tensor, causal: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Return the gradients of q, k and v, in at least fp32."""
        wide = torch.promote_types(q.dtype, torch.float32)
        grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=wide) for x in (q, k, v))
        logsumexp_BSH = logsumexp.transpose(1, 2)
        for row, piece in spans:
            at_q, at_k = (row, piece.queries, piece), (row, piece.keys, piece)
            reverse = piece.mask == _REVERSED
            given = [
                _reversed_if(_tiles(x, *at), reverse)
                for x, at in ((grad_o, at_q), (q, at_q), (k, at_k), (v, at_k), (o, at_q))
            ]
            lse_BHt = _reversed_if(_tiles(logsumexp_BSH, *at_q), reverse).transpose(1, 2)
            parts = self.backward(*given, lse_BHt.contiguous(), piece.mask != _NONE)
            for gradient, at, part in zip(
                (grad_q, grad_k, grad_v), (at_q, at_k, at_k), parts, strict=True
            ):
                of_tiles = _reversed_if(part, reverse).unflatten(0, (-1, piece.count))
                _repetitions(gradient, *at).add_(of_tiles)
        return grad_q, grad_k, grad_v


def _runs(positions: np.ndarray, at: slice) -> Iterator[tuple[int, range]]:
    """Yield the place and the positions of each run of positions that increase by 1."""
    within = positions[at]
    edges = [0, *(np.flatnonzero(np.diff(within) != 1) + 1).tolist(), len(within)]
    for start, stop in pairwise(edges):
        first = int(within[start])
        yield at.start + start, range(first, first + stop - start)


def _repetitions(x_BS: Tensor, rows: slice, tokens: range, piece: Piece) -> Tensor:
    """View the tokens of all repetitions of a piece, [B, n, t, ...]."""
    last = tokens.stop + piece.stride * (piece.count - 1)
    tiles = x_BS[rows, tokens.start : last].unfold(1, len(tokens), piece.stride or 1)
    return tiles.movedim(-1, 2)


def _tiles(x_BS: Tensor, rows: slice, tokens: range, piece: Piece) -> Tensor:
    """The tokens of all repetitions of a piece, a sample each, [B·n, t, ...]."""
    return _repetitions(x_BS, rows, tokens, piece).flatten(0, 1)


def _reversed_if(x_BS: Tensor, reverse: bool) -> Tensor:
    return x_BS.flip(1) if reverse else x_BS
