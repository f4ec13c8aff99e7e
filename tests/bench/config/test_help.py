"""Help is in words, names what a verb reads, and its examples run; true needs no value."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from bench.__main__ import VERBS, main
from bench.commands import flags
from bench.config import options
from bench.config.help_text import EXAMPLES


def shown(verb: str) -> str:
    """The help of a verb, in one line."""
    return " ".join(flags.PARSERS[verb]().format_help().split())


def parsed(command: str) -> Any:
    verb, *rest = shlex.split(command)
    return options.parse(flags.PARSERS[verb](), rest)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_that_parses(verb: str) -> None:
    assert shown(verb).endswith(f"example: python -m bench {EXAMPLES[verb]}")
    assert EXAMPLES[verb].split()[0] == verb
    parsed(EXAMPLES[verb])


@pytest.mark.parametrize("verb", VERBS)
def test_types_are_in_words(verb: str) -> None:
    text = shown(verb)
    assert re.findall(r"type: |null|Union|Literal|\bNone\b|\[\]|\+ ", text) == []


def test_help_names_what_a_flag_may_be() -> None:
    text = shown("sweep")
    assert "--seq_len N " in text
    assert "(an integer, a list of integers; default: 1024)" in text
    assert "--dry_run {true,false} " in text
    assert "--dtype {fp32,bf16,fp64} " in text
    assert "--model.rope_theta X " in text
    assert "--config FILE " in text


@pytest.mark.parametrize(
    ("verb", "read", "ignored"),
    [
        ("run", "dry_run rank rounds steps", ""),
        ("verify", "steps seed timeout_s", "dry_run hardware rounds warmup_steps"),
        ("compare", "seq_len pairs", "dry_run rounds steps ring_order data.pack"),
        ("plan", "hardware seq_len", "dry_run steps rounds timeout_s"),
        ("calibrate", "model.hidden_size dtype links_of", "seq_len steps seed optimizer.type"),
    ],
)
def test_help_has_the_flags_that_a_verb_reads(verb: str, read: str, ignored: str) -> None:
    """The others are taken all the same: verbs share their files."""
    text = shown(verb)
    assert [name for name in read.split() if f" --{name} " not in text] == []
    assert [name for name in ignored.split() if f" --{name} " in text] == []
    known = {action.dest for action in flags.PARSERS[verb]()._actions}
    assert known >= {*read.split(), *ignored.split()}


def test_true_needs_no_value() -> None:
    flag = "--activation_checkpointing"
    for end in ("", " --seq_len 64", " true", "=true"):
        assert parsed(f"run {flag}{end}").activation_checkpointing is True
    assert parsed(f"run {flag} false").activation_checkpointing is False
    assert parsed(f"sweep {flag} [true,false] --dry_run").activation_checkpointing == [True, False]
    given = parsed("sweep --dry_run --tiled_loss_compute --model.tie_word_embeddings")
    assert (given.dry_run, given.tiled_loss_compute) == (True, True)
    assert given.model.tie_word_embeddings is True
    assert parsed("plan --out rows.csv").out == "rows.csv"


def test_other_flags_need_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--seq_len", "--dry_run"]) == 2
    assert "seq_len" in capsys.readouterr().err
