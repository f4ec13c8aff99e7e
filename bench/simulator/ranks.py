"""Ranks that differ: in a ring, where heads do not divide, and where experts get unequal loads."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from odysseus.config import router_load
from odysseus.config.parallelism import Parallelism
from odysseus.config.run import RunConfig
from odysseus.parallel.ring_order import share_of_attention


def first_of_ring(run: Parallelism, ring_rank: int, at: int = 0) -> int:
    """Return the first rank of the world with the tokens of a rank of the ring that keys and values
    go around: of a ring axis, the one with the number `at` on the sequence axis."""
    if run.ring_axis == "sp":
        return first_rank(run, 0, ring_rank)
    return first_rank(run, ring_rank, at)


def first_rank(run: Parallelism, ring_rank: int, at: int = 0) -> int:
    """Return the first rank of the world with these numbers in its ring and on its sequence
    axis."""
    sizes, places = run.axis_sizes, {"dp": 0, "ring": ring_rank, "sp": at, "tp": 0}
    grid = np.arange(run.world_size).reshape(list(sizes.values()))
    return int(grid[tuple(places[axis] for axis in sizes)])


def share_of_scores(run: RunConfig, rank: int) -> Fraction:
    """Return the causal scores that a rank computes, divided by the mean over all ranks."""
    ring, _ = run.token_axes
    share = share_of_attention(run.ring_order, ring, run.place(rank, run.ring_axis))
    if run.heads_divide:
        return share
    queries, _ = run.head_shares[run.place(rank, "sp")]
    mean = Fraction(run.architecture.num_attention_heads, run.sequence_size)
    return share * len(queries) / mean


def busiest_rank(run: RunConfig) -> int:
    """Return the rank that computes the most causal scores: the first at one end of its ring."""
    ends = [first_of_ring(run, ring_rank) for ring_rank in range(run.token_axes.ring)]
    return max(ends, key=lambda rank: share_of_scores(run, rank))


def places_in_ring(ring: int) -> list[int]:
    """Return the ranks of a ring that differ: those between the first and the last are alike."""
    return sorted({0, min(1, ring - 1), ring - 1})


def with_most_rows(run: RunConfig) -> list[int]:
    """Return the first ranks, one for each different place in a ring, whose experts get the most
    rows; none unless ranks share out experts, and these get unequal loads."""
    if not run.has_unequal_experts:
        return []
    ranks, (ring, _) = run.expert_ranks, run.token_axes
    by_place: dict[int, int] = {}
    of_ranks = router_load.of_ranks(run.router_shares, ranks)
    for rank in range(of_ranks.index(max(of_ranks)), run.world_size, ranks):
        at = run.place(rank, run.ring_axis)
        by_place.setdefault(at if at in (0, ring - 1) else 1, rank)
    return [*by_place.values()]
