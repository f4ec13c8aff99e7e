"""Closed forms of what ranks exchange for experts that are shared out: rows of tokens, and weights.

Symbols as in bench/theory/traffic.py; E experts, K experts of a token, e ranks that share them out.
A rank's t tokens are t·K rows. Which rank they travel to is data: by default all experts get
equally many, so that (e-1)/e of all rows leave their rank. Under another load (`router_load`) every
rank's tokens are spread over the experts in the same shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from bench.theory.terms import Term
from odysseus.config import router_load
from odysseus.config.run import RunConfig
from odysseus.memory.tiling import tile_count


@dataclass(frozen=True)
class Load:
    """Rows that a rank exchanges with other ranks, in one block and forward.

    Attributes:
        sent_rows: Rows of its tokens that it sends to other ranks' experts; None if all experts
            get equally many.
        returned_rows: Rows of other ranks' tokens that its experts return.
    """

    sent_rows: Fraction | None = None
    returned_rows: Fraction | None = None


EQUAL = Load()


def load_of(run: RunConfig, rank: int) -> Load:
    """Return what a rank exchanges under the run's `router_load`, in whole rows of each tile."""
    if not run.has_unequal_experts:
        return EQUAL
    ranks, sent_rows, returned_rows = run.expert_ranks, 0, 0
    for tokens in _tiles(run):
        rows = run.micro_batch_size * tokens * run.architecture.num_experts_per_tok
        own = router_load.rows_of_ranks(rows, run.router_shares, ranks)[rank % ranks]
        sent_rows, returned_rows = sent_rows + rows - own, returned_rows + (ranks - 1) * own
    return Load(Fraction(sent_rows), Fraction(returned_rows))


def fractional_load_of(run: RunConfig, rank: int) -> Load:
    """Return what :func:`load_of` does without rounding, in proportion to the tokens."""
    if not run.has_unequal_experts:
        return EQUAL
    rows, ranks = run.local_tokens * run.architecture.num_experts_per_tok, run.expert_ranks
    own = rows * router_load.of_ranks(run.router_shares, ranks)[rank % ranks]
    return Load(rows - own, (ranks - 1) * own)


def exchanges(run: RunConfig, load: Load = EQUAL) -> Iterator[Term]:
    """Yield the all-to-alls of one block in one micro step.

    Forward sends rows with a weight each, and the rows that experts return; backward sends the
    gradients of each the other way. Recomputation stops before the last exchange. A tile's backward
    repeats its whole forward, which checkpointing then does not. Ranks first tell each other how
    many rows each expert gets, 8 bytes an expert.
    """
    ranks, a, width = run.expert_ranks, run.architecture, run.compute_dtype.itemsize
    if ranks == 1:
        return
    balanced = Fraction(run.local_tokens * a.num_experts_per_tok * (ranks - 1), ranks)
    sent_rows = balanced if load.sent_rows is None else load.sent_rows
    returned_rows = balanced if load.returned_rows is None else load.returned_rows
    tiles = len(_tiles(run))
    forwards = 1 + int(run.recomputes or run.tiled_mlp_compute)
    returned = 1 + int(run.tiled_mlp_compute)
    row = a.hidden_size * width
    for count, sent in (
        (forwards * tiles, Fraction(8 * a.num_experts * (ranks - 1), ranks)),
        (forwards * tiles, sent_rows * row / tiles),
        (forwards * tiles, sent_rows * width / tiles),
        (returned * tiles, returned_rows * row / tiles),
        (tiles, sent_rows * row / tiles),  # gradients of what experts return
        (tiles, returned_rows * row / tiles),  # gradients of rows
        (tiles, returned_rows * width / tiles),  # gradients of weights
    ):
        yield Term("all_to_all", "activation", count, sent * ranks / (ranks - 1), ranks)


def _tiles(run: RunConfig) -> list[int]:
    """Return the tokens of each tile of a sample's shard; the last may be shorter."""
    tokens = run.seq_len // run.shards
    if not run.tiled_mlp_compute:
        return [tokens]
    size = -(-tokens // tile_count(run.micro_batch_size, tokens, run.architecture.hidden_size))
    return [min(size, tokens - start) for start in range(0, tokens, size)]
