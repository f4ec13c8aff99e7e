"""The number of GPUs that the example uses, and what it says of them, with a PyTorch that is told
what it sees."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from scripts import gpus
from tests.support.paths import ROOT


def test_the_largest_power_of_two() -> None:
    assert [gpus.usable(count) for count in range(1, 10)] == [1, 2, 2, 4, 4, 4, 4, 8, 8]


def test_what_is_said_of_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(gpus, "driver", lambda: "580.65.06")
    assert gpus.main() == 0
    told = capsys.readouterr()
    assert told.out == "4\n"
    assert told.err.startswith("6 x NVIDIA H100 80GB HBM3, of which 4 are used; driver 580.65.06, ")


def test_a_driver_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch sees no GPU then, and the example must not run for hours on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpus, "driver", lambda: "535.54.03")
    assert gpus.main() == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "can use no GPU here; NVIDIA's driver is 535.54.03." in told.err


def set_up(folder: Path, *files: str) -> tuple[str, str]:
    """Source the set-up with a pip that fails for files of GPUs; return what pip was called with,
    and what the set-up says."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    pip = tools / "pip"
    pip.write_text('#!/bin/bash\necho "$*" >> "$CALLS"\n[[ "$*" != *gpu* ]]\n')
    pip.chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    environment = os.environ | {"VIRTUAL_ENV": str(folder), "CALLS": str(calls)}
    environment["PATH"] = f"{tools}:{os.environ['PATH']}"
    script = f"set -euo pipefail; source scripts/setup_env.sh {' '.join(files)}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return calls.read_text(), done.stderr


def test_an_extra_that_did_not_install_is_tried_again(tmp_path: Path) -> None:
    """The others stay installed."""
    files = "requirements.txt", "requirements-gpu.txt", "requirements-hf.txt"
    calls, told = set_up(tmp_path, *files)
    assert [line.split()[-1] for line in calls.splitlines()] == [*files]
    assert told == "requirements-gpu.txt did not install; going on with PyTorch's own kernels\n"
    again, _ = set_up(tmp_path, *files)
    assert again == "install --quiet -r requirements-gpu.txt\n"
