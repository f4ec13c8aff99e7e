"""README, scripts and help agree with each other and with the code."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import VERBS, main
from bench.config import options
from tests.support.paths import ROOT


def commands(text: str) -> list[str]:
    """Return the bench commands in a text, without their line's comment."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(r"^(?:go_on )?python -m bench (.*?)(?:\s+#.*)?$", joined, re.MULTILINE)
    files = {"config": "sweeps/example.yml", "rings": "sweeps/hybrids.yml"}
    files["ring"] = f"{files['rings']} --method ulysses --ring_parallel_size 4"
    for name, file in files.items():
        found = [c.replace(f'"${{{name}[@]}}"', f"--config scripts/{file}") for c in found]
    return found


class Stopped(Exception):
    """Raised in place of what follows the parsing of flags."""


def test_the_example_runs_what_the_readme_shows() -> None:
    readme = commands((ROOT / "README.md").read_text())
    example = commands((ROOT / "run_example.sh").read_text())
    assert {c for c in readme if "results/local/" in c} == {*example} - {example[2], example[-1]}
    assert [c.partition(" ")[0] for c in example] == [*["sweep"] * 3, "report", "verify", "sweep"]


def test_every_command_of_the_readme_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []

    def stop(made: Any, arguments: list[str]) -> None:
        parsed.append(arguments)
        real(made, arguments)
        raise Stopped

    real = options.parse
    monkeypatch.setattr(options, "parse", stop)
    monkeypatch.chdir(ROOT)
    shown = commands((ROOT / "README.md").read_text() + (ROOT / "run_example.sh").read_text())
    for command in shown:
        with pytest.raises(Stopped):
            main(command.split())
    assert len(parsed) == len(shown) == 21


@pytest.mark.slow
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    """Each runs as printed, after those before it, in a copy like a fresh clone."""
    kept_out = shutil.ignore_patterns(".git", ".venv", "local", "__pycache__", ".*_cache")
    folder = Path(shutil.copytree(ROOT, tmp_path / "project", ignore=kept_out))
    failed = {}
    for command in commands((ROOT / "README.md").read_text()):
        words = shlex.split(command)
        files = [
            w for word in words for w in (sorted(folder.glob(word)) if "*" in word else [word])
        ]
        ran = subprocess.run(
            [sys.executable, "-m", "bench", *map(str, files)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        nothing_fits = ran.returncode == 1 and "it fits with more memory savings" in ran.stdout
        if ran.returncode and not nothing_fits:  # plan says then what to add
            failed[command] = f"{ran.returncode}: {ran.stderr[-500:]}"
    assert failed == {}


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_flag(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: list[Any] = []

    def stop(made: Any, arguments: list[str]) -> None:
        parsers.append(made)
        raise Stopped

    monkeypatch.setattr(options, "parse", stop)
    with pytest.raises(Stopped):
        main([verb])
    (made,) = parsers
    flags = [action for action in made._actions if action.option_strings]
    assert len(flags) > 3
    assert [action.dest for action in flags if not str(action.help or "").strip()] == []


def test_help_of_the_front_door_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [verb for verb in VERBS if f"  {verb} " not in shown] == []


@pytest.mark.parametrize("script", ["run_example.sh", "run_tests.sh", ".ci/run"])
def test_scripts_are_bash(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o100
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_requirements_are_pinned_exactly() -> None:
    for file in ROOT.glob("requirements*.txt"):
        lines = file.read_text().splitlines()
        packages = [line for line in lines if line and not line.startswith(("#", "-r "))]
        assert [p for p in packages if not re.fullmatch(r"[\w\-\[\]]+==[\w.]+", p)] == []
    assert "torch==2.13.0" in (ROOT / "requirements.txt").read_text().splitlines()
