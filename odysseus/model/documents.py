"""Documents packed into one sequence: no token attends to another document's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_NO_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Span:
    """The queries and keys of one document, as slices of the tensors that attention was given.

    Attributes:
        row: The sequence's row in the batch.
        queries: The document's queries.
        keys: The document's keys.
    """

    row: slice
    queries: slice
    keys: slice


@dataclass(frozen=True)
class Documents:
    """The documents of B packed sequences, by where each begins.

    Attributes:
        starts: Per sequence, the position of each document's first token, ascending, from 0.
    """

    starts: tuple[tuple[int, ...], ...]

    @classmethod
    def from_positions(cls, positions_BS: np.ndarray) -> Documents:
        """Read documents from position ids: one begins wherever they do not increase by 1."""
        breaks = np.diff(positions_BS, axis=1) != 1
        return cls(tuple((0, *(np.flatnonzero(row) + 1).tolist()) for row in breaks))

    @property
    def one_per_sequence(self) -> bool:
        """Whether every sequence is one document."""
        return all(len(starts) == 1 for starts in self.starts)

    def spans(self, queries: np.ndarray, keys: np.ndarray) -> Iterator[Span]:
        """Yield, per document, the slices of these queries and keys that belong to it.

        A document without queries or without keys here yields nothing.

        Args:
            queries: Positions of the queries in the whole sequence, ascending.
            keys: Positions of the keys in the whole sequence, ascending.
        """
        for row, starts in enumerate(self.starts):
            edges = [*starts, _NO_END]
            q_edges, k_edges = (np.searchsorted(at, edges).tolist() for at in (queries, keys))
            for q, k in zip(pairwise(q_edges), pairwise(k_edges), strict=True):
                if q[0] < q[1] and k[0] < k[1]:
                    yield Span(slice(row, row + 1), slice(*q), slice(*k))
