"""Ranks that differ: in a ring, and where heads do not divide."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from odysseus.config.groups import Parallelism
from odysseus.config.run import RunConfig
from odysseus.config.sizes import shares
from odysseus.parallel.ring_order import share_of_attention


def first_rank(run: Parallelism, ring_rank: int, at: int = 0) -> int:
    """Return the first rank of the world with these numbers in its ring and on its sequence
    axis."""
    sizes, places = run.axis_sizes, {"dp": 0, "ring": ring_rank, "sp": at}
    grid = np.arange(run.world_size).reshape(list(sizes.values()))
    return int(grid[tuple(places[axis] for axis in sizes)])


def share_of_scores(run: RunConfig, rank: int) -> Fraction:
    """Return the causal scores that a rank computes, divided by the mean over all ranks."""
    a, n = run.architecture, run.sequence_size
    share = share_of_attention(run.ring_order, run.ring_parallel_size, run.place(rank, "ring"))
    if run.heads_divide:
        return share
    queries, _ = shares(a.num_attention_heads, a.num_key_value_heads, n)[run.place(rank, "sp")]
    return share * Fraction(len(queries) * n, a.num_attention_heads)


def busiest_rank(run: RunConfig) -> int:
    """Return the rank that computes the most causal scores: the first at one end of its ring."""
    ends = [first_rank(run, ring_rank) for ring_rank in range(run.ring_parallel_size)]
    return max(ends, key=lambda rank: share_of_scores(run, rank))
