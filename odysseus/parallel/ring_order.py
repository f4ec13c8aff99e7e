"""Which tokens each place of the ring has, and what of other places' they may look at.

Contiguous: R chunks, one a place; under the causal mask the last place has most to do. Zigzag: 2R
chunks, of which place r has r and 2R-1-r, so that of every other place's tokens it sees exactly
half: the same work for all (Megatron-LM's context parallelism; Llama 3, arXiv 2407.21783 §3.3.2).
A place's own tokens are in order, so at home the mask is the plain causal one.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Look:
    """Some of a place's tokens look at some keys: each at all of them or, `causal`, up to its own.

    Attributes:
        queries: Of the place's tokens.
        keys: Of the source's tokens.
        source: The place that the keys are of; None if they are of the whole sequence in order.
    """

    queries: slice
    keys: slice
    source: int | None
    causal: bool = False


def tokens_of(order: str, seq_len: int, ring: int, place: int) -> np.ndarray:
    """Positions in the sample of the tokens of one place of R, ascending, int64."""
    if order == "contiguous" or ring == 1:
        return np.arange(seq_len // ring) + place * (seq_len // ring)
    width = seq_len // (2 * ring)
    return np.concatenate([np.arange(width) + c * width for c in (place, 2 * ring - 1 - place)])


def shard_of(order: str, seq_len: int, ring: int, sequence: int, shard: int) -> np.ndarray:
    """Positions in the sample of one rank's tokens, ascending, int64: those of its place of the
    ring are divided among the ranks of the sequence axis."""
    place, part = divmod(shard, sequence)
    return np.split(tokens_of(order, seq_len, ring, place), sequence)[part]


def look_at_place(order: str, place: int, source: int, tokens: int) -> Look | None:
    """What the tokens of a place see of those of another; None where all is masked.

    Args:
        tokens: How many each of the two has.
    """
    everything = slice(0, tokens)
    if source == place:
        return Look(everything, everything, source, causal=True)
    if order == "contiguous":
        return Look(everything, everything, source) if source < place else None
    # Both chunks of a later place lie between those of an earlier one.
    if source < place:
        return Look(everything, slice(0, tokens // 2), source)
    return Look(slice(tokens // 2, tokens), everything, source)


def share_of_attention(order: str, ring: int, place: int) -> Fraction:
    """A place's part of the causal scores, over the mean."""
    return Fraction(1) if order == "zigzag" else Fraction(2 * place + 1, ring)


def look_at_whole(order: str, ring: int, place: int, tokens: int) -> list[Look]:
    """What the tokens of a place see of the whole sequence in order, but for its own tokens."""
    everything = slice(0, tokens)
    if order == "contiguous":
        looks = [Look(everything, slice(0, place * tokens), None)]
    else:
        width = tokens // 2
        between = slice((place + 1) * width, (2 * ring - 1 - place) * width)
        before = Look(everything, slice(0, place * width), None)
        looks = [before, Look(slice(width, tokens), between, None)]
    return [look for look in looks if look.keys.start < look.keys.stop]


def positions_of(
    look: Look, order: str, seq_len: int, ring: int, place: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the sample of the tokens that look, and of those that they look at."""
    of_place = tokens_of(order, seq_len, ring, place)[look.queries]
    if look.source is None:
        return of_place, np.arange(seq_len)[look.keys]
    return of_place, tokens_of(order, seq_len, ring, look.source)[look.keys]
