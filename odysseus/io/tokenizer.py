"""A checkpoint's own tokens, by the ``tokenizer.json`` that lies beside its weights."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@lru_cache(maxsize=1)
def _tokenizer(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer  # a third of a second, which most runs need not wait

    try:
        found = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        why = " ".join(str(error).split())[:80]
        raise ValueError(
            f"{file} cannot be read: {why}; valid: a tokenizer of the library tokenizers, or none, "
            "for byte tokens"
        ) from None
    # What a file may say of the length of one text.
    found.no_truncation()
    found.no_padding()
    return found


def check(file: Path, vocab_size: int) -> None:
    """Raise ValueError unless a model has a row for each of the tokenizer's tokens."""
    rows = max(_tokenizer(file).get_vocab().values(), default=-1) + 1
    if rows > vocab_size:
        raise ValueError(
            f"{file} has tokens up to {rows - 1}, but model.vocab_size is {vocab_size}; valid: the "
            "model's own tokenizer, or none, for byte tokens"
        )


def encode(text: str, file: Path) -> np.ndarray:
    """A text as token ids, uint32, without the tokens that begin or end one. All of it at once: no
    place to cut is known that changes no token."""
    found = _tokenizer(file).encode(text, add_special_tokens=False)
    return np.array(found.ids, dtype=np.uint32)
