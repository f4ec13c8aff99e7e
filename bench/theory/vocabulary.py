"""Collectives of an embedding and a head that are cut by vocabulary (arXiv 1909.08053 §3).

Symbols as in bench/theory/traffic.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.theory import blocks
from bench.theory.terms import Term
from methods import method_of
from odysseus.config.run import RunConfig
from odysseus.config.vocabulary import EMBEDDING, HEAD
from odysseus.model.loss import most_tokens


def exchanges(run: RunConfig) -> Iterator[Term]:
    """Yield the collectives of one micro step.

    The embedding gathers token ids, and its output is reduce-scattered; backward is the transpose.
    The head gathers labels and, unless the stream is replicated, its input, whose gradient it
    reduce-scatters. Two all-reduces make a tile's softmax, of one and of two numbers per token. The
    checkpoint engine runs its forward twice.
    """
    n = run.cutting_ranks
    tokens = run.local_tokens * n
    stream, ids = blocks.whole_stream_bytes(run), 8 * tokens
    if EMBEDDING in run.vocabulary_cuts:
        yield Term("all_gather", "edge", 1, ids, n)
        yield Term("reduce_scatter", "edge", 1, stream, n)
        yield Term("all_gather", "edge", 1, stream, n)
    if HEAD not in run.vocabulary_cuts:
        return
    yield Term("all_gather", "edge", 1, ids, n)
    forwards = 2 if run.tiles_loss and run.loss_engine == "checkpoint" else 1
    replicated = method_of(run.method).replicated
    wide = torch.promote_types(run.compute_dtype, torch.float32).itemsize
    for count, of_tile in _tiles(run):
        if not replicated:
            size = stream // tokens * of_tile * n
            yield Term("all_gather", "edge", count * forwards, size, n)
            yield Term("reduce_scatter", "edge", count, size, n)
        for numbers in (1, 2):
            size = of_tile * n * numbers * wide
            yield Term("all_reduce", "edge", count * forwards, size, n)


def _tiles(run: RunConfig) -> list[tuple[int, int]]:
    """Return (count, tokens of each rank) of the loss's tiles."""
    if not run.tiles_loss:
        return [(1, run.local_tokens)]
    size = most_tokens(run, run.architecture.vocab_size)
    full, rest = divmod(run.local_tokens, size)
    return [(full, size), (int(rest > 0), rest)]
