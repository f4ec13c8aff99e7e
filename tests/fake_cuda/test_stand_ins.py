"""A dry run's stand-ins for Liger's kernels and PyTorch's chunked loss do what the originals do on
a GPU: the same allocations in the same order, launches of the same tensors, the same FLOPs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.fake_cuda.stand_ins import FUNCTIONS, of_stand_in
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def originals() -> dict[str, dict[str, Any]]:
    """Return the account of every function, from a new process: it loads the device first."""
    command = [sys.executable, "-m", "tests.fake_cuda", "stand_ins"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_stand_in_does_what_the_original_does(
    originals: dict[str, dict[str, Any]], name: str
) -> None:
    assert of_stand_in(name) == originals[name]
    assert originals[name]["alive"]
    assert bool(originals[name]["launches"]) == name.startswith("liger")
