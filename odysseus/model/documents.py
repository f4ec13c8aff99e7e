"""Documents packed into one sequence: no token looks at another document's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_NO_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Span:
    """Tokens of one document, some of which look at others.

    Attributes:
        row: Of the batch, as a slice.
        queries: Which of the queries at hand.
        keys: Which of the keys at hand.
    """

    row: slice
    queries: slice
    keys: slice


@dataclass(frozen=True)
class Documents:
    """Where documents begin in each of B packed sequences.

    Attributes:
        starts: Of every sequence, the first tokens of its documents, ascending, from 0.
    """

    starts: tuple[tuple[int, ...], ...]

    @classmethod
    def from_positions(cls, positions_BS: np.ndarray) -> Documents:
        """Those of position ids: a document begins wherever these do not just count on."""
        breaks = np.diff(positions_BS, axis=1) != 1
        return cls(tuple((0, *(np.flatnonzero(row) + 1).tolist()) for row in breaks))

    @property
    def one_per_sequence(self) -> bool:
        """Whether every sequence is one document."""
        return all(len(starts) == 1 for starts in self.starts)

    def spans(self, queries: np.ndarray, keys: np.ndarray) -> Iterator[Span]:
        """Of every document, what is there of it, where that is queries and keys.

        Args:
            queries: Positions in the sequence of the queries at hand, ascending.
            keys: Those of the keys.
        """
        for row, starts in enumerate(self.starts):
            edges = [*starts, _NO_END]
            of_queries, of_keys = (np.searchsorted(at, edges).tolist() for at in (queries, keys))
            for q, k in zip(pairwise(of_queries), pairwise(of_keys), strict=True):
                if q[0] < q[1] and k[0] < k[1]:
                    yield Span(slice(row, row + 1), slice(*q), slice(*k))
