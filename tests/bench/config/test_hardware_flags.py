"""``--hardware.FIELD`` and a section of YAML override fields of a profile, for every verb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import rows
from bench.__main__ import main
from bench.commands import flags
from bench.config import options
from bench.hardware.profiles import PROFILES
from bench.report import inputs
from tests.support.refusals import refused_line

SMALL = (
    "--model.num_hidden_layers 2 --model.hidden_size 64 --model.intermediate_size 64 "
    "--model.num_attention_heads 8 --model.num_key_value_heads 8 --seq_len 128 --dry_run true "
    "--dtype bf16 --method ulysses --out o.csv"
)
FILES = {
    "section.yml": "hardware:\n  name: a100-80g\n  memory_bytes: 60000000000\n",
    "fields.yml": "hardware:\n  network_bytes_per_s: 1e9\n",
    "dotted.yml": "hardware.issue_s: 0.00001\nseq_len: 512\n",
    "list.yml": "hardware: [a100-80g, h100-80g]\n",
    "empty.yml": "hardware: {}\n",
    "bad.yml": "hardware:\n  name: h20\n  speed: 3\n",
    "deep.yml": "hardware:\n  name: h20\n  memory: {a: 3}\n",
}


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)


def parsed(command: str) -> Any:
    verb, *arguments = command.split()
    return options.parse(flags.PARSERS[verb](), arguments)


@pytest.mark.parametrize(
    "verb", ["run", "verify", "calibrate", "theory", "plan", "sweep", "compare"]
)
def test_every_verb_that_reads_a_profile(verb: str) -> None:
    given = f"{verb} --hardware h100-80g --hardware.network_bytes_per_s 12.5e9"
    assert parsed(given).hardware == "h100-80g(network_bytes_per_s=1.25e+10)"
    assert parsed(f"{verb} --hardware h100-80g").hardware == "h100-80g"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("run", ""),
        ("plan", "h100-80g"),
        ("plan --hardware.memory_bytes 6e10", "h100-80g(memory_bytes=60000000000)"),
        ("run --hardware.issue_s=1e-5 --hardware=h20", "h20(issue_s=1e-05)"),
        ("run --hardware.issue_s 1 --hardware h20 --hardware.issue_s 2", "h20(issue_s=2)"),
        ("run --hardware h20(issue_s=1.0) --hardware.hooks_s 2", "h20(issue_s=1, hooks_s=2)"),
        ("run --hardware h20(issue_s=1) --hardware.issue_s 2", "h20(issue_s=2)"),
        ("run --hardware.name h20", "h20"),
        ("run --config section.yml", "a100-80g(memory_bytes=60000000000)"),
        ("run --config=section.yml", "a100-80g(memory_bytes=60000000000)"),
        ("run --hardware h20 --config section.yml", "h20(memory_bytes=60000000000)"),
        ("run --hardware.memory_bytes 5e3 --config section.yml", "a100-80g(memory_bytes=5000)"),
        (
            "run --config section.yml --config fields.yml",
            "a100-80g(memory_bytes=60000000000, network_bytes_per_s=1e+09)",
        ),
        ("run --config dotted.yml --hardware h20", "h20(issue_s=1e-05)"),
        ("run --config empty.yml", ""),
        ("run --config section.yml --config empty.yml", "a100-80g(memory_bytes=60000000000)"),
        ("sweep --config list.yml", ["a100-80g", "h100-80g"]),
        (
            "sweep --config list.yml --hardware.issue_s 1",
            ["a100-80g(issue_s=1)", "h100-80g(issue_s=1)"],
        ),
        (
            "sweep --hardware [h20,a100-80g] --hardware.issue_s [1,2]",
            [f"{name}(issue_s={s})" for name in ("h20", "a100-80g") for s in (1, 2)],
        ),
        ("sweep --hardware h20 --hardware.issue_s [1]", "h20(issue_s=1)"),
    ],
)
def test_flags_and_files_become_one_label(command: str, expected: str | list[str]) -> None:
    assert parsed(command).hardware == expected


def test_other_keys_of_a_file_stay() -> None:
    assert parsed("run --config dotted.yml --hardware h20").seq_len == 512


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (
            "run --hardware h20 --hardware.speed 3",
            "hardware.speed is no field of a hardware profile",
        ),
        ("run --hardware.speed 3", "hardware.speed is no field of a hardware profile"),
        ("run --config bad.yml", "hardware.speed is no field"),
        ("run --config deep.yml", "hardware.memory = {'a': 3}; valid: a finite number, above 0"),
        ("plan --hardware.memory_bytes many", "hardware.memory_bytes = 'many'; valid: "),
        ("sweep --hardware [h20] --hardware.issue_s [1,-2]", "hardware.issue_s = -2; valid: "),
        ("run --hardware h20 --hardware.memory_bytes", "hardware.memory_bytes is empty; valid: "),
        ("run --hardware.memory_bytes --hardware h20", "hardware.memory_bytes is empty; valid: "),
        ("run --hardware.memory_bytes 6e10", "memory_bytes overrides a field of no profile"),
        ("run --hardware b300 --hardware.issue_s 1 --dry_run true", "profile has none; valid: "),
        ("run --hardware h20 --hardware.memory_bytes 5 --dry_run true", "valid: more than the "),
        ("theory --hardware h900 --hardware.issue_s 1", "hardware is 'h900'; valid: "),
    ],
)
def test_bad_overrides(command: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused_line(capsys, *command.split())
    assert reason in line
    assert "valid: " in line


def test_rows_of_other_fields_are_other_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep resumes, its rows have the label, and a report finds the memory by it."""
    command = f"sweep {SMALL} --world_size 2"
    cells = ["--hardware", "h100-80g", "--hardware.memory_bytes", "[6e10, 7e10]"]
    assert main([*command.split(), *cells]) == 0
    found = list(rows.read(Path("o.csv"))["hardware"])
    assert found == [f"h100-80g(memory_bytes={n}0000000000)" for n in (6, 7)]
    capsys.readouterr()
    assert main([*command.split(), *cells[:-1], "[7e10, 8e10]"]) == 0
    assert len(rows.read(Path("o.csv"))) == 3
    drawn = inputs.drawable(inputs.read([Path("o.csv")]))
    lost = PROFILES["h100-80g"].memory_bytes - PROFILES["h100-80g"].usable_bytes
    assert [int(n) for n in drawn["usable_bytes"]] == [n * 10**10 - lost for n in (6, 7, 8)]


def test_a_field_changes_the_prediction() -> None:
    command = f"run {SMALL} --world_size 16 --sequence_parallel_size 8 --hardware h20"
    for field in ("", "--hardware.network_bytes_per_s 1e6"):
        assert main([*command.split(), *field.split()]) == 0
    before, after = rows.read(Path("o.csv"))["step_ms_p50"].astype(float)
    assert after > 3 * before
