"""A named pipe in place of a file is refused; nobody waits for a writer that never comes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bench.__main__ import main
from tests.support.launched import SMALL


@pytest.mark.parametrize(
    "command",
    [
        f"run {SMALL} --world_size 1 --data.path PIPE.txt",
        f"run {SMALL} --world_size 1 --method PIPE.py",
        f"run {SMALL} --world_size 1 --config PIPE.yml",
        f"run {SMALL} --world_size 8 --dry_run true --hardware PIPE.yml",
        f"run {SMALL} --world_size 1 --out PIPE.csv",
        f"sweep {SMALL} --world_size 1 --out PIPE.csv",
        "report --rows PIPE.csv",
        "report --rows PIPE.json",
        "calibrate --world_size 1 --out PIPE.yml",
        "calibrate --world_size 1 --links_of PIPE.yml",
    ],
)
def test_a_pipe_is_refused(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    name = next(word for word in command.split() if word.startswith("PIPE"))
    os.mkfifo(name)
    signal.alarm(20)  # ends this process, should the command wait
    try:
        assert main(command.split()) == 2
    finally:
        signal.alarm(0)
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert Path(name).is_fifo()
