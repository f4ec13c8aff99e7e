"""A tokenizer of 320 words, for tests that need any."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["?", "the", "sea", "is", "deep", "<pad>", "<end>", *(f"w{i}" for i in range(7, 320))]


def tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer that splits at spaces."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="?"
    )
