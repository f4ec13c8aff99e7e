"""Flags are parsed before anything heavy is imported: help and errors of parsing appear at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import VERBS
from bench.commands import flags
from methods.peers.registry import PEERS
from tests.support.paths import ROOT

HEAVY = "torch", "numpy", "pandas", "matplotlib"
PROGRAM = f"""
import sys
from bench.__main__ import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:  # --help
    status = end.code
print(status, *({set(HEAVY)} & sys.modules.keys()), file=sys.stderr)
"""


def run_light(*arguments: str) -> tuple[str, list[str]]:
    """Run the front door in its own process; return its output and error lines.

    The last error line is the exit status and the heavy packages that were imported.
    """
    command = [sys.executable, "-c", PROGRAM, *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return ended.stdout, ended.stderr.splitlines()


def test_every_verb_has_flags() -> None:
    assert list(flags.PARSERS) == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_no_torch(verb: str) -> None:
    shown, errors = run_light(verb, "--help")
    assert shown.startswith("usage: ")
    assert f"bench {verb} " in shown.replace("\n", " ")
    assert errors == ["0"]


def test_help_shows_the_groups_of_options() -> None:
    shown, _ = run_light("run", "--help")
    titles = ("Cell of the benchmark", "Parallelism", "Batch", "Precision", "ZeRO-3")
    titles += ("Memory savings", "Execution", "Dry run")
    places = [shown.find(f"\n{title}: ") for title in titles]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--metod", "tp"], "unrecognized arguments: --metod tp; did you mean method"),
        (["run", "--dtype", "fp8"], "fp8"),
        (["sweep", "--seq_len", "[1024,many]"], "many"),
        (["rnu"], "unknown verb 'rnu'; valid: run, sweep"),
        (["plan", "--hardware.memory", "fast"], "hardware.memory = 'fast'; valid: a finite number"),
    ],
    ids=["flag", "value", "grid", "verb", "field"],
)
def test_a_typo_imports_no_torch(arguments: list[str], message: str) -> None:
    _, (error, status) = run_light(*arguments)
    assert message in error
    assert status == "2"


@pytest.mark.parametrize("arguments", [[], ["h20(memory_bytes=6e10)"]], ids=["list", "one"])
def test_profiles_are_shown_without_torch(arguments: list[str]) -> None:
    shown, errors = run_light("hardware", *arguments)
    assert "h20" in shown
    assert errors == ["0"]


def test_an_unknown_yaml_key_imports_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "run.yml"
    file.write_text("model:\n  hiden_size: 3\n")
    _, (error, status) = run_light("run", "--config", str(file))
    assert "did you mean model.hidden_size" in error
    assert status == "2"


def test_help_of_compare_names_every_peer() -> None:
    (peers,) = (action for action in flags.compare()._actions if action.dest == "peers")
    valid = str(peers.help).partition("Valid: ")[2].rstrip(".").split(", ")
    assert valid == list(PEERS)
