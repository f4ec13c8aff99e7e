"""Text to tokens, and tokens to this rank's shard of each sample, with position ids.

B batch, s tokens of this rank, L tokens of a sample.
"""

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
from odysseus.io import records, tokenizer
from odysseus.model.documents import Documents
from odysseus.model.loss import IGNORED_LABEL
from odysseus.model.varlen import Packing
from odysseus.parallel.ring_order import shard_of

_CHUNK_BYTES = 1 << 24
_BLANK_LINES = re.compile(rb"\n(?:[ \t\r]*\n)+")


@dataclass(frozen=True)
class Batch:
    """One micro step's tokens on one rank, int64.

    Attributes:
        input_ids: [B, s].
        labels: [B, s], the token after each input, or -100.
        position_ids: [1, s]; [B, s] where documents are packed.
        documents: Documents of the whole sequences; None unless documents are packed.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    documents: Documents | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.input_ids, self.labels, self.position_ids


@dataclass(frozen=True)
class Text:
    """A text as tokens.

    Attributes:
        tokens: Whole numbers, one dimension.
        starts: Positions where documents begin: 0 and, if packed, where each other one does.
        labelled: Whether each token is learnt; None for all.
    """

    tokens: np.ndarray
    starts: np.ndarray
    labelled: np.ndarray | None = None

    def starts_between(self, first: int, last: int) -> np.ndarray:
        """Return where documents begin in [first, last] of the endlessly repeated text.

        Positions are relative to `first`.
        """
        length = len(self.tokens)
        offsets = np.arange(first // length, last // length + 1) * length
        starts = (offsets[:, None] + self.starts).ravel()
        return starts[(first <= starts) & (starts <= last)] - first


def open_tokens(path: str) -> np.ndarray:
    """Map the file's bytes as uint8 tokens; without a path, return CPython's help topics.

    Raises:
        ValueError: the file is missing, empty or not UTF-8 (with the offset of the first bad byte).
    """
    if not path:
        return _builtin_tokens()
    file = Path(path)
    if not (os.path.isfile(file) and os.access(file, os.R_OK)):
        raise ValueError(
            f"data.path is {path!r}, which is not a readable file; valid: a UTF-8 text file"
        )
    if file.stat().st_size == 0:
        raise ValueError(f"data.path is {path!r}, which is empty; valid: a UTF-8 text file")
    return np.memmap(file, dtype=np.uint8, mode="r")


def load_text(run: RunConfig) -> Text:
    """Read a run's text as its checkpoint's tokens, or as bytes if it has no tokenizer.

    Each packed document is tokenised by itself, together with the blank lines that end it.

    Raises:
        ValueError: the file is neither a text nor a dataset.
    """
    path, pack, file = run.data.path, run.data.pack, run.model.tokenizer
    if path and records.has_records(path):
        return _dataset(path, pack, run.model.checkpoint if file else None, file)
    if not pack and file is None:
        return Text(open_tokens(path), np.zeros(1, dtype=np.int64))
    return _text(path, pack, file)


@lru_cache(maxsize=1)
def _text(path: str, pack: bool, file: Path | None) -> Text:
    text = open_tokens(path)
    blanks = _BLANK_LINES.finditer(text.data) if pack else ()
    ends = [blank.end() for blank in blanks]
    starts = np.array([0, *(end for end in ends if end < len(text))])
    if file is None:
        return Text(text, starts)
    documents = np.split(text, starts[1:])
    encoded = [tokenizer.encode(document.tobytes().decode(), file) for document in documents]
    lengths = [len(tokens) for tokens in encoded if len(tokens)]
    return Text(np.concatenate(encoded), np.cumsum([0, *lengths[:-1]]))


@lru_cache(maxsize=1)
def _dataset(path: str, pack: bool, folder: Path | None, file: Path | None) -> Text:
    tokens, labels = [], []
    for record in records.read(path, folder):
        if file is None:
            ids = np.frombuffer(record.text.encode(), dtype=np.uint8)
            labelled = np.ones(len(ids), dtype=bool)
        else:
            everything = ((0, len(record.text)),)
            ids, labelled = tokenizer.encode_labelled(
                record.text, record.labelled or everything, file
            )
        if len(ids):
            tokens.append(ids)
            labels.append(labelled)
    lengths = [len(ids) for ids in tokens]
    starts = np.cumsum([0, *lengths[:-1]]) if pack else np.zeros(1, dtype=np.int64)
    return Text(np.concatenate(tokens), starts, np.concatenate(labels))


def check_tokens(run: RunConfig) -> None:
    """Raise ValueError unless a run's text is UTF-8, holds a sample and fits its vocabulary.

    With ``data.repeat`` a text shorter than a sample is valid.
    """
    if records.is_table(run.data.path):
        open_tokens(run.data.path)
    else:
        _check_utf8(run.data.path)
    if run.model.checkpoint:
        tokenizer.check_folder(run.model.checkpoint)
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
    """The samples of a run in their fixed order, and one rank's shard of each.

    Sample k is tokens [k·L, (k+1)·L], wrapping at the end of the text: L inputs, and L labels that
    are one token later. Step t, micro step g, replica p, batch element b reads sample
    ((t·GAS + g)·DP + p)·MBS + b, so DP=8, GAS=1 and DP=1, GAS=8 read the same samples per step.

    Args:
        replica: This rank's index among the data-parallel replicas.
        shard: This rank's index among the ranks that share a sample.
    """

    def __init__(self, run: RunConfig, replica: int, shard: int, device: torch.device) -> None:
        self.run, self.replica, self.device = run, replica, device
        self.text = load_text(run)
        self.positions = shard_of(run.ring_order, run.seq_len, *run.token_axes, shard)

    def step(self, step: int) -> list[Batch]:
        """Return the micro batches of one step."""
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
        at = samples[:, None] * length + self.positions
        inputs, labels = (tokens[i % len(tokens)].astype(np.int64) for i in (at, at + 1))
        if self.text.labelled is not None:
            labels[~self.text.labelled[(at + 1) % len(tokens)]] = IGNORED_LABEL
        positions, documents = self.positions[None], None
        if self.run.data.pack:
            edges = [self.text.starts_between(first, first + length) for first in samples * length]
            starts = [np.union1d([0], e[e < length]) for e in edges]
            documents = Documents(tuple(tuple(row.tolist()) for row in starts))
            if self.device.type != "cpu" and self.run.token_axes.ring == 1:
                Packing.of(documents, length, self.device)  # in the step the host would wait for it
            # The last token of a document has no next token to predict.
            ends = [np.isin(self.positions + 1, e) for e in edges]
            labels[np.stack(ends)] = IGNORED_LABEL
            document_starts = [
                s[np.searchsorted(s, self.positions, side="right") - 1] for s in starts
            ]
            positions = self.positions - np.stack(document_starts)
        input_ids, label_ids, position_ids = (
            torch.from_numpy(x).to(self.device) for x in (inputs, labels, positions.copy())
        )
        return Batch(input_ids, label_ids, position_ids, documents)
