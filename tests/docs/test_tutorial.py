"""The tutorial's commands, as the page prints them, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [text.strip() for kind, text in BLOCKS if kind == "bash"]
OUTPUTS = [text for kind, text in BLOCKS if kind == "text"]
FILES = {"yaml": "grid.yml", "python": "figure.py"}


def printed(command: str, folder: Path) -> str:
    """The standard output of a command of the page."""
    words = shlex.split(command)
    assert words[0] == "python"
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the files that the page shows."""
    for kind, name in FILES.items():
        assert f"`{name}`" in PAGE
        (text,) = (text for found, text in BLOCKS if found == kind)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_grid_and_figure_print_what_the_page_shows(folder: Path) -> None:
    sweep, report, figure = COMMANDS[2:]
    assert printed(sweep, folder) == OUTPUTS[2]
    printed(report, folder)
    assert (folder / "report" / "report.html").is_file()
    assert printed(figure, folder) == OUTPUTS[3]
    assert (folder / "sent.png").is_file()


@pytest.mark.slow
def test_run_and_verify_print_what_the_page_shows(folder: Path) -> None:
    for command, expected in zip(COMMANDS[:2], OUTPUTS[:2], strict=True):
        words = re.findall(r"[A-Za-z]+", printed(command, folder))
        # All but the numbers, which depend on the machine.
        assert [w for w in words if w != "e"] == [
            w for w in re.findall(r"[A-Za-z]+", expected) if w != "e"
        ]
