"""Tokens of a checkpoint that brings its tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace, Sequence
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from odysseus.config.run import DataOptions, ModelOptions, RunConfig
from odysseus.io.text import Samples, check_tokens
from tests.support.hf_configs import SIZES

WORDS = ["<s>", "?", "the", "cat", "sat", "on", "mat"]


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """A folder with a tokenizer of seven words, and a text of six."""
    words = WordLevel({word: 300 + i for i, word in enumerate(WORDS)}, unk_token="?")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $0", special_tokens=[("<s>", 300)])
    tokenizer.enable_truncation(2)  # of one text for a model, not of what it is trained on
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"model_type": "llama"}))
    (tmp_path / "text.txt").write_text("the cat sat on the mät")
    data = DataOptions(path=str(tmp_path / "text.txt"))
    return RunConfig(model=ModelOptions(name_or_path=str(tmp_path)), data=data, seq_len=5)


def test_samples_are_its_tokens(run: RunConfig) -> None:
    check_tokens(run)
    (batch,) = Samples(run, 0, 0, torch.device("cpu")).step(0)
    assert batch.input_ids.tolist() == [[302, 303, 304, 305, 302]]
    assert batch.labels.tolist() == [[303, 304, 305, 302, 301]]


def test_a_text_too_short_in_tokens(run: RunConfig) -> None:
    with pytest.raises(ValueError, match=r"needs 7 tokens, but .* has 6; valid: seq_len up to 5"):
        check_tokens(replace(run, seq_len=6))


def test_a_tokenizer_of_another_model(run: RunConfig) -> None:
    """Only the largest id counts."""
    check_tokens(replace(run, model=replace(run.model, vocab_size=307)))
    few = replace(run, model=replace(run.model, vocab_size=306))
    with pytest.raises(ValueError, match=r"has tokens up to 306, but model\.vocab_size is 306"):
        check_tokens(few)


def test_a_tokenizer_that_is_none(run: RunConfig) -> None:
    (Path(run.model.name_or_path) / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be used: .*; valid: "):
        check_tokens(run)


def test_a_tokenizer_that_makes_a_thousand_letters_of_one(run: RunConfig) -> None:
    file = Path(run.model.name_or_path) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.normalizer = Sequence([Replace("a", "a" * 1000), Replace("a", "a" * 1000)])
    tokenizer.save(str(file))
    with pytest.raises(ValueError, match=r"makes \d+ characters or tokens of 'the cat sat on t'"):
        check_tokens(run)


def test_a_panic_of_the_library_is_told_as_any_other_error(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """Its base class is that of a panic of Rust's."""

    def panic(_: str) -> None:
        raise Panic("index out of bounds")

    monkeypatch.setattr("tokenizers.Tokenizer.from_file", panic)
    with pytest.raises(ValueError, match=r"cannot be used: index out of bounds; valid"):
        check_tokens(run)
