"""The tokens of each ring rank and the keys they see: every pair of the causal mask, once."""

from __future__ import annotations

import numpy as np
import pytest

from odysseus.parallel.ring_order import (
    VisibleBlock,
    share_of_attention,
    tokens_of,
    visible_block,
    visible_in_sequence,
)

ORDERS = ("zigzag", "contiguous")
RINGS = (1, 2, 3, 4, 8)


def test_zigzag_by_hand() -> None:
    """Two ring ranks, with chunks 0 and 3, 1 and 2."""
    assert tokens_of("zigzag", 8, 2, 0).tolist() == [0, 1, 6, 7]
    assert tokens_of("zigzag", 8, 2, 1).tolist() == [2, 3, 4, 5]
    assert tokens_of("contiguous", 8, 2, 1).tolist() == [4, 5, 6, 7]
    assert tokens_of("zigzag", 3, 1, 0).tolist() == [0, 1, 2]
    assert visible_block("zigzag", 0, 1, 4) == VisibleBlock(slice(2, 4), slice(0, 4), 1)
    assert visible_block("zigzag", 1, 0, 4) == VisibleBlock(slice(0, 4), slice(0, 2), 0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ring", RINGS)
def test_ring_ranks_share_the_tokens(order: str, ring: int) -> None:
    shares = [tokens_of(order, 48, ring, ring_rank) for ring_rank in range(ring)]
    assert {len(tokens) for tokens in shares} == {48 // ring}
    assert all((np.diff(tokens) > 0).all() for tokens in shares)
    assert sorted(np.concatenate(shares).tolist()) == list(range(48))


def mark(seen: np.ndarray, block: VisibleBlock, queries: np.ndarray, keys: np.ndarray) -> None:
    """Count every pair of the block."""
    queries, keys = queries[block.queries], keys[block.keys]
    pairs = np.ones((len(queries), len(keys)), dtype=int)
    seen[np.ix_(queries, keys)] += np.tril(pairs) if block.causal else pairs


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ring", RINGS)
def test_blocks_are_the_causal_mask(order: str, ring: int) -> None:
    shares = [tokens_of(order, 48, ring, ring_rank) for ring_rank in range(ring)]
    by_rank, by_sequence = np.zeros((2, 48, 48), dtype=int)
    for ring_rank, queries in enumerate(shares):
        for source, keys in enumerate(shares):
            block = visible_block(order, ring_rank, source, len(queries))
            if block is not None:
                mark(by_rank, block, queries, keys)
        own = visible_block(order, ring_rank, ring_rank, len(queries))
        assert own is not None
        mark(by_sequence, own, queries, queries)
        for block in visible_in_sequence(order, ring, ring_rank, len(queries)):
            mark(by_sequence, block, queries, np.arange(48))
    # Half of the diagonal does not count as work.
    scores = np.array([by_rank[queries].sum() - 24 / ring for queries in shares])
    assert scores / scores.mean() == pytest.approx(
        [float(share_of_attention(order, ring, ring_rank)) for ring_rank in range(ring)]
    )
    assert (by_rank == np.tril(np.ones((48, 48)))).all()
    assert (by_sequence == by_rank).all()
