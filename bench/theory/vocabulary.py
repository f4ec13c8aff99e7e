"""Collectives of an embedding and a head that are cut by vocabulary (arXiv 1909.08053 §3).

Symbols as in bench/theory/traffic.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from methods import method_of
from odysseus.config.run import RunConfig
from odysseus.config.vocabulary import EMBEDDING, HEAD
from odysseus.model.loss import most_tokens


def exchanges(run: RunConfig) -> Iterator[tuple[str, int, int]]:
    """Yield (collective, count, bytes of the whole tensor) of one micro step.

    The embedding gathers token ids, and its output is reduce-scattered; backward is the transpose.
    The head gathers labels and, unless the stream is replicated, its input, whose gradient it
    reduce-scatters. Two all-reduces make a tile's softmax, of one and of two numbers a token. The
    checkpoint engine runs its forward twice.
    """
    a, n, ids = run.architecture, run.sequence_size, 8
    width = a.hidden_size * run.compute_dtype.itemsize
    wide = torch.promote_types(run.compute_dtype, torch.float32).itemsize
    tokens = run.local_tokens * n
    if EMBEDDING in run.vocabulary_cuts:
        yield "all_gather", 1, tokens * ids
        yield "reduce_scatter", 1, tokens * width
        yield "all_gather", 1, tokens * width
    if HEAD not in run.vocabulary_cuts:
        return
    yield "all_gather", 1, tokens * ids
    forwards = 2 if run.tiles_loss and run.loss_engine == "checkpoint" else 1
    replicated = method_of(run.method).replicated
    for count, of_tile in _tiles(run):
        if not replicated:
            yield "all_gather", count * forwards, of_tile * n * width
            yield "reduce_scatter", count, of_tile * n * width
        for numbers in (1, 2):
            yield "all_reduce", count * forwards, of_tile * n * numbers * wide


def _tiles(run: RunConfig) -> list[tuple[int, int]]:
    """Return (count, tokens of each rank) of the loss's tiles."""
    if not run.tiles_loss:
        return [(1, run.local_tokens)]
    size = most_tokens(run, run.architecture.vocab_size)
    full, rest = divmod(run.local_tokens, size)
    return [(full, size), (int(rest > 0), rest)]
