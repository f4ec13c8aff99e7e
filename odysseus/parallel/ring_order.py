"""The tokens that each rank of the ring has, and the keys of other ring ranks that they see.

Contiguous: R chunks, one per ring rank; under the causal mask the last ring rank has the most work.
Zigzag: 2R chunks, of which ring rank r has chunks r and 2R-1-r. It then sees exactly half of every
other ring rank's tokens: the same work for all (Megatron-LM's context parallelism; Llama 3, arXiv
2407.21783 §3.3.2). A ring rank's own tokens are in order, so among them the mask is the plain
causal one.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class VisibleBlock:
    """Some queries of a ring rank and keys that they see: all or, if `causal`, up to their own.

    Attributes:
        queries: A slice of this ring rank's tokens.
        keys: A slice of the source's tokens.
        source: The ring rank that has the keys; None if the source is the whole sequence in order.
    """

    queries: slice
    keys: slice
    source: int | None
    causal: bool = False


def tokens_of(order: str, seq_len: int, ring: int, ring_rank: int) -> np.ndarray:
    """Positions in the sample of one ring rank's tokens, ascending, int64."""
    if order == "contiguous" or ring == 1:
        return np.arange(seq_len // ring) + ring_rank * (seq_len // ring)
    width = seq_len // (2 * ring)
    chunks = (ring_rank, 2 * ring - 1 - ring_rank)
    return np.concatenate([np.arange(width) + chunk * width for chunk in chunks])


def shard_of(order: str, seq_len: int, ring: int, sequence: int, shard: int) -> np.ndarray:
    """Positions in the sample of one rank's tokens, ascending, int64: the ranks of a sequence axis
    divide the tokens of their ring rank."""
    ring_rank, part = divmod(shard, sequence)
    return np.split(tokens_of(order, seq_len, ring, ring_rank), sequence)[part]


def visible_block(order: str, ring_rank: int, source: int, tokens: int) -> VisibleBlock | None:
    """The keys of one ring rank that the tokens of another see; None where all are masked.

    Args:
        tokens: Number of tokens that each ring rank has.
    """
    everything = slice(0, tokens)
    if source == ring_rank:
        return VisibleBlock(everything, everything, source, causal=True)
    if order == "contiguous":
        return VisibleBlock(everything, everything, source) if source < ring_rank else None
    # Both chunks of a later ring rank lie between those of an earlier one.
    if source < ring_rank:
        return VisibleBlock(everything, slice(0, tokens // 2), source)
    return VisibleBlock(slice(tokens // 2, tokens), everything, source)


def share_of_attention(order: str, ring: int, ring_rank: int) -> Fraction:
    """A ring rank's causal scores divided by the mean over ring ranks."""
    return Fraction(1) if order == "zigzag" else Fraction(2 * ring_rank + 1, ring)


def visible_in_sequence(order: str, ring: int, ring_rank: int, tokens: int) -> list[VisibleBlock]:
    """The keys of the sequence in order that a ring rank's tokens see, except its own tokens."""
    everything = slice(0, tokens)
    if order == "contiguous":
        blocks = [VisibleBlock(everything, slice(0, ring_rank * tokens), None)]
    else:
        width = tokens // 2
        between = slice((ring_rank + 1) * width, (2 * ring - 1 - ring_rank) * width)
        before = VisibleBlock(everything, slice(0, ring_rank * width), None)
        blocks = [before, VisibleBlock(slice(width, tokens), between, None)]
    return [block for block in blocks if block.keys.start < block.keys.stop]


def positions_of(
    block: VisibleBlock, order: str, seq_len: int, ring: int, ring_rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the sample of a block's queries, and of its keys."""
    queries = tokens_of(order, seq_len, ring, ring_rank)[block.queries]
    if block.source is None:
        return queries, np.arange(seq_len)[block.keys]
    return queries, tokens_of(order, seq_len, ring, block.source)[block.keys]
