"""YAML files that are empty, too deep, without end, or no files at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.__main__ import main
from tests.support.refusals import refused_line

BOMB = "a: &a [1, 1]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"


def test_sections_without_keys_are_as_good_as_none(tmp_path: Path) -> None:
    config, out = tmp_path / "run.yml", tmp_path / "rows.csv"
    config.write_text("dry_run: true\nseq_len: 64\ndata:\n  # path: book.txt\nmodel:\noptimizer:\n")
    assert main(["run", "--config", str(config), "--out", str(out)]) == 0


def test_an_anchor_may_be_used_again(tmp_path: Path) -> None:
    config, out = tmp_path / "run.yml", tmp_path / "rows.csv"
    config.write_text("dry_run: true\nworld_size: &n 2\nsequence_parallel_size: *n\nseq_len: 64\n")
    assert main(["run", "--config", str(config), "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no names of options"),
        ("# seq_len: 64", "no names of options"),
        ("- seq_len", "no names of options"),
        ("seq_len:", "seq_len is empty"),
        ("data: 3", "data is 3"),
        (f"seq_len: {'9' * 400}", "a number has more than 300 digits"),
        (f"seed: {list(range(3000))}", "a list has more than 1000 values"),
        ("a: " + "[" * 5000 + "]" * 5000, "more than 50 levels"),
        (BOMB, "an alias stands inside"),
        ("a: &a [*a]", "an alias stands inside"),
        ("a: [1", "while parsing"),
        ("#" * 2**21, "more than 1048576 bytes"),
        (b"path: caf\xe9", "utf-8"),
    ],
    ids=lambda value: "" if len(value) > 40 else str(value),
)
def test_files_that_are_refused(
    text: str | bytes,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "run.yml"
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = refused_line(capsys, "run", "--config", str(config))
    assert f"config = {str(config)!r}: " in line
    assert reason in line


@pytest.mark.parametrize("name", ["", ".", "/dev/zero", "pipe", "nowhere.yml"])
def test_names_that_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for flags in (["--config", name], [f"--config={name}"]):
        assert f"config = {name!r}: " in refused_line(capsys, "sweep", *flags)


def test_a_value_in_a_message_is_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused_line(capsys, "run", "--method", "m" * 100_000)
    assert len(line) < 1000
    assert "mmm…" in line


def test_a_key_of_a_section_needs_a_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yml"
    config.write_text("seq_len: 64\nmodel:\n  name_or_path:\n")
    line = refused_line(capsys, "run", "--config", str(config))
    assert "model.name_or_path is empty; valid: a value, or leave the key out" in line


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--seq_len", "9" * 400, "a number has more than 300 digits"),
        ("--optimizer.learning_rate", "9" * 400, "a number has more than 300 digits"),
        ("--seed", f"{list(range(3000))}", "a list has more than 1000 values"),
    ],
    ids=str.__len__,
)
def test_values_on_the_command_line_have_bounds(
    flag: str, value: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused_line(capsys, "sweep", flag, value)
    assert f"{flag} {value[:9]}" in line
    assert f"{reason}; valid: fewer" in line


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--model.name_or_path", "valid presets: tiny"),
        ("--data.path", "is not a readable file"),
        ("--hardware", "File name too long"),
        ("--method", "is not a file"),
        ("--config", "File name too long"),
    ],
)
def test_a_name_that_is_too_long_is_that_of_no_file(
    flag: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    endings = {"--hardware": ".yml", "--method": ".py"}
    line = refused_line(capsys, "run", flag, "x" * 256 + endings.get(flag, ""))
    assert flag.lstrip("-") in line
    assert reason in line
