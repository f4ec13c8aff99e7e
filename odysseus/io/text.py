"""Text to tokens to this rank's shard of a sample, with its positions."""

from __future__ import annotations

import codecs
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.io import tokenizer
from odysseus.model.documents import Documents
from odysseus.model.loss import IGNORED_LABEL
from odysseus.parallel.ring_order import shard_of

_CHUNK_BYTES = 1 << 24
_BLANK_LINES = re.compile(rb"\n(?:[ \t\r]*\n)+")


@dataclass(frozen=True)
class Batch:
    """One micro step's tokens on one rank: [B, s] int64 each, positions [1, s], or [B, s] where
    the sequences are packed, whose documents are then known whole."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    documents: Documents | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.input_ids, self.labels, self.position_ids


@dataclass(frozen=True)
class Text:
    """Tokens, and where documents begin among them: at 0 and, packed, after blank lines."""

    tokens: np.ndarray
    starts: np.ndarray

    def starts_between(self, first: int, last: int) -> np.ndarray:
        """First tokens of the documents that begin in [first, last], from first, of the text read
        over and over."""
        length = len(self.tokens)
        rounds = np.arange(first // length, last // length + 1) * length
        starts = (rounds[:, None] + self.starts).ravel()
        return starts[(first <= starts) & (starts <= last)] - first


def open_tokens(path: str) -> np.ndarray:
    """The file's bytes as uint8 tokens, read when touched; without a path, CPython's own topics.

    Raises:
        ValueError: the file is missing, empty or not UTF-8 (with the offset of the first bad byte).
    """
    if not path:
        return _builtin_tokens()
    file = Path(path)
    if not (file.is_file() and os.access(file, os.R_OK)):
        raise ValueError(
            f"data.path is {path!r}, which is not a readable file; valid: a UTF-8 text file"
        )
    if file.stat().st_size == 0:
        raise ValueError(f"data.path is {path!r}, which is empty; valid: a UTF-8 text file")
    return np.memmap(file, dtype=np.uint8, mode="r")


def load_text(run: RunConfig) -> Text:
    """The run's text as its checkpoint's tokens, or as bytes where that has no tokenizer.

    Packed documents are tokenised each by itself, with the blank lines that end it.
    """
    path, pack, file = run.data.path, run.data.pack, run.model.tokenizer
    if not pack and file is None:
        return Text(open_tokens(path), np.zeros(1, dtype=np.int64))
    return _text(path, pack, file)


@lru_cache(maxsize=1)
def _text(path: str, pack: bool, file: Path | None) -> Text:
    found = open_tokens(path)
    blanks = _BLANK_LINES.finditer(found.data) if pack else ()
    ends = [blank.end() for blank in blanks]
    starts = np.array([0, *(end for end in ends if end < len(found))])
    if file is None:
        return Text(found, starts)
    documents = np.split(found, starts[1:])
    encoded = [tokenizer.encode(document.tobytes().decode(), file) for document in documents]
    lengths = [len(tokens) for tokens in encoded if len(tokens)]
    return Text(np.concatenate(encoded), np.cumsum([0, *lengths[:-1]]))


def check_tokens(run: RunConfig) -> None:
    """Raise ValueError unless the run's text is UTF-8 and holds at least one whole sample, and its
    tokens are the model's."""
    _check_utf8(run.data.path)
    if run.model.tokenizer:
        tokenizer.check(run.model.tokenizer, run.architecture.vocab_size)
    tokens = load_text(run).tokens
    if len(tokens) < run.seq_len + 1 and not run.data.repeat:
        raise ValueError(
            f"seq_len = {run.seq_len} needs {run.seq_len + 1} tokens, but data.path = "
            f"{run.data.path or 'the built-in text'!r} has {len(tokens)}; "
            f"valid: seq_len up to {len(tokens) - 1}, a longer text, or data.repeat = true"
        )


def _check_utf8(path: str) -> None:
    tokens = open_tokens(path)
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(tokens), _CHUNK_BYTES):
        pending = len(decoder.getstate()[0])
        stop = start + _CHUNK_BYTES
        try:
            decoder.decode(tokens[start:stop].tobytes(), final=stop >= len(tokens))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"data.path is {path!r}, which is not UTF-8 at byte "
                f"{start - pending + error.start}; valid: a UTF-8 text file"
            ) from None


@lru_cache(maxsize=1)
def _builtin_tokens() -> np.ndarray:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return np.frombuffer(text.encode(), dtype=np.uint8)


class Samples:
    """The samples of a run in their fixed order, and one rank's share of each.

    Sample k is tokens [k·L, (k+1)·L], wrapping at the end of the text: L inputs and, one later,
    L labels. Step t, micro step g, replica p, batch element b reads sample
    ((t·GAS + g)·DP + p)·MBS + b, so DP=8, GAS=1 and DP=1, GAS=8 read the same step.
    """

    def __init__(self, run: RunConfig, replica: int, shard: int, device: torch.device) -> None:
        self.run, self.replica, self.device = run, replica, device
        self.text = load_text(run)
        sizes = run.ring_parallel_size, run.sequence_size
        self.positions = shard_of(run.ring_order, run.seq_len, *sizes, shard)

    def step(self, step: int) -> list[Batch]:
        """The micro batches of one step."""
        run = self.run
        batches = []
        for micro in range(run.gradient_accumulation_steps):
            first = step * run.gradient_accumulation_steps + micro
            first = (first * run.data_parallel_size + self.replica) * run.micro_batch_size
            samples = np.arange(first, first + run.micro_batch_size)
            batches.append(self._batch(samples))
        return batches

    def _batch(self, samples: np.ndarray) -> Batch:
        tokens, length = self.text.tokens, self.run.seq_len
        where = samples[:, None] * length + self.positions
        inputs, labels = (tokens[at % len(tokens)].astype(np.int64) for at in (where, where + 1))
        positions, documents = self.positions[None], None
        if self.run.data.pack:
            edges = [self.text.starts_between(first, first + length) for first in samples * length]
            starts = [np.union1d([0], e[e < length]) for e in edges]
            documents = Documents(tuple(tuple(of_row.tolist()) for of_row in starts))
            # The last token of a document has none to foretell.
            ends = [np.isin(self.positions + 1, e) for e in edges]
            labels[np.stack(ends)] = IGNORED_LABEL
            at = [np.searchsorted(s, self.positions, side="right") - 1 for s in starts]
            begun = [s[of_token] for s, of_token in zip(starts, at, strict=True)]
            positions = self.positions - np.stack(begun)
        input_ids, label_ids, position_ids = (
            torch.from_numpy(x).to(self.device) for x in (inputs, labels, positions.copy())
        )
        return Batch(input_ids, label_ids, position_ids, documents)
