"""Who has which tokens and looks at which others: together every pair of the causal mask, once."""

from __future__ import annotations

import numpy as np
import pytest

from odysseus.parallel.ring_order import (
    Look,
    look_at_place,
    look_at_whole,
    share_of_attention,
    tokens_of,
)

ORDERS = ("zigzag", "contiguous")
RINGS = (1, 2, 3, 4, 8)


def test_zigzag_by_hand() -> None:
    """Two places, chunks 0 and 3, 1 and 2."""
    assert tokens_of("zigzag", 8, 2, 0).tolist() == [0, 1, 6, 7]
    assert tokens_of("zigzag", 8, 2, 1).tolist() == [2, 3, 4, 5]
    assert tokens_of("contiguous", 8, 2, 1).tolist() == [4, 5, 6, 7]
    assert tokens_of("zigzag", 3, 1, 0).tolist() == [0, 1, 2]
    assert look_at_place("zigzag", 0, 1, 4) == Look(slice(2, 4), slice(0, 4), 1)
    assert look_at_place("zigzag", 1, 0, 4) == Look(slice(0, 4), slice(0, 2), 0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ring", RINGS)
def test_places_share_the_tokens(order: str, ring: int) -> None:
    places = [tokens_of(order, 48, ring, place) for place in range(ring)]
    assert {len(tokens) for tokens in places} == {48 // ring}
    assert all((np.diff(tokens) > 0).all() for tokens in places)
    assert sorted(np.concatenate(places).tolist()) == list(range(48))


def mark(seen: np.ndarray, look: Look, queries: np.ndarray, keys: np.ndarray) -> None:
    """Count every pair that is looked at."""
    pairs = np.ones((len(queries[look.queries]), len(keys[look.keys])), dtype=int)
    seen[np.ix_(queries[look.queries], keys[look.keys])] += np.tril(pairs) if look.causal else pairs


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ring", RINGS)
def test_looks_are_the_causal_mask(order: str, ring: int) -> None:
    places = [tokens_of(order, 48, ring, place) for place in range(ring)]
    by_place, by_whole = np.zeros((2, 48, 48), dtype=int)
    for place, queries in enumerate(places):
        for source, keys in enumerate(places):
            look = look_at_place(order, place, source, len(queries))
            if look is not None:
                mark(by_place, look, queries, keys)
        home = look_at_place(order, place, place, len(queries))
        assert home is not None
        mark(by_whole, home, queries, queries)
        for look in look_at_whole(order, ring, place, len(queries)):
            mark(by_whole, look, queries, np.arange(48))
    scores = np.array(
        [by_place[queries].sum() - 24 / ring for queries in places]
    )  # no diagonal's half
    assert scores / scores.mean() == pytest.approx(
        [float(share_of_attention(order, ring, place)) for place in range(ring)]
    )
    assert (by_place == np.tril(np.ones((48, 48)))).all()
    assert (by_whole == by_place).all()
