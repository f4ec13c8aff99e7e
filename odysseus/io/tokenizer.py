"""Text to a checkpoint's tokens, with the ``tokenizer.json`` in the folder of its weights.

The library is Rust: a file that it does not expect may end in a panic, which is no Exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_T = TypeVar("_T")
_OTHER_FORMS = ("tokenizer.model", "tiktoken.model", "spiece.model", "vocab.json", "vocab.txt")
_MOST_GROWTH = 64
"""Most characters that a tokenizer may make of one; Unicode's own rules make at most 18."""
_PIECE, _PIECES = 16, 100
"""Characters of a piece, and number of pieces of a text, whose growth is tried first."""


@lru_cache(maxsize=1)
def _tokenizer(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer  # takes a third of a second; most runs do not need it

    tokenizer = _called(file, lambda: Tokenizer.from_file(str(file)))
    # The file may ask for truncation or padding of each text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_folder(folder: Path) -> None:
    """Raise ValueError if a folder has a tokenizer, but in none of the forms that are read."""
    others = [name for name in _OTHER_FORMS if (folder / name).is_file()]
    if others and not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} has {others[0]}, which is not read, and no tokenizer.json; valid: "
            "tokenizer.json, as AutoTokenizer.from_pretrained(…).save_pretrained(…) writes it"
        )


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

    Raises:
        ValueError: the tokenizer fails, or makes so much of the text that memory could not hold it.
    """
    return np.array(_encoding(text, file).ids, dtype=np.uint32)


def encode_labelled(
    text: str, labelled: Sequence[tuple[int, int]], file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Do the same, and return which tokens begin in `labelled` characters, as booleans.

    Args:
        labelled: Begin and end of each part of the text.
    """
    encoding = _encoding(text, file)
    begins = np.array([begin for begin, _ in encoding.offsets], dtype=np.int64)
    inside = np.zeros(len(begins), dtype=bool)
    for begin, end in labelled:
        inside |= (begin <= begins) & (begins < end)
    return np.array(encoding.ids, dtype=np.uint32), inside


def _encoding(text: str, file: Path) -> Encoding:
    tokenizer = _tokenizer(file)
    _check_growth(text, tokenizer, file)
    return _called(file, lambda: tokenizer.encode(text, add_special_tokens=False))


def _check_growth(text: str, tokenizer: Tokenizer, file: Path) -> None:
    """Raise ValueError if the tokenizer makes very long texts of pieces of the text."""
    normalize = tokenizer.normalizer and tokenizer.normalizer.normalize_str
    for begin in range(0, len(text), max(_PIECE, len(text) // _PIECES)):
        piece = text[begin : begin + _PIECE]
        if normalize:
            grown = len(_called(file, lambda p=piece: normalize(p)))
        else:
            grown = len(_called(file, lambda p=piece: tokenizer.encode(p)).ids)
        if grown > _MOST_GROWTH * len(piece):
            raise ValueError(
                f"{file} makes {grown} characters or tokens of {piece!r}; valid: a tokenizer that "
                f"makes at most {_MOST_GROWTH} of one character"
            )


def _called(file: Path, call: Callable[[], _T]) -> _T:
    """Return what a call of the library returns; raise ValueError if it fails in any way."""
    try:
        return call()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        why = " ".join(str(error).split())[:80]
        raise ValueError(
            f"{file} cannot be used: {why}; valid: a tokenizer of the library tokenizers, or none, "
            "for byte tokens"
        ) from None
