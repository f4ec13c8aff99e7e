"""Text to a checkpoint's tokens, with the ``tokenizer.json`` in the folder of its weights."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@lru_cache(maxsize=1)
def _tokenizer(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer  # takes a third of a second; most runs do not need it

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        why = " ".join(str(error).split())[:80]
        raise ValueError(
            f"{file} cannot be read: {why}; valid: a tokenizer of the library tokenizers, or none, "
            "for byte tokens"
        ) from None
    # The file may ask for truncation or padding of each text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check(file: Path, vocab_size: int) -> None:
    """Raise ValueError unless a model's embedding has a row for each of the tokenizer's tokens."""
    rows = max(_tokenizer(file).get_vocab().values(), default=-1) + 1
    if rows > vocab_size:
        raise ValueError(
            f"{file} has tokens up to {rows - 1}, but model.vocab_size is {vocab_size}; valid: the "
            "model's own tokenizer, or none, for byte tokens"
        )


def encode(text: str, file: Path) -> np.ndarray:
    """Return a text's token ids, uint32, without special tokens at its beginning or end.

    The text is encoded whole, because no position is known where cutting it changes no token.
    """
    encoding = _tokenizer(file).encode(text, add_special_tokens=False)
    return np.array(encoding.ids, dtype=np.uint32)
