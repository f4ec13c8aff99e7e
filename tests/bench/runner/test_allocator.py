"""CUDA's allocator: expandable segments are requested unless the user has set something else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from bench.runner.allocator import configure_allocator, settings_in_force
from odysseus.config.run import RunConfig
from tests.support.marks import slow
from tests.support.ranks import run_ranks

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
ON, OFF = RunConfig(), RunConfig(expandable_segments=False)
OFFLOADED = replace(ON, activation_checkpoint_cpu_offload=True)
OURS = "expandable_segments:True"


def configured(*runs: RunConfig) -> tuple[list[str], str]:
    """Configure the allocators for cells that a process runs one after another; return what each
    call returned, and what is in force at last."""
    return [configure_allocator(run) for run in runs], settings_in_force()


@pytest.mark.parametrize(
    ("run", "expected"),
    [(ON, OURS), (OFF, ""), (OFFLOADED, f"{OURS},pinned_max_round_threshold_mb:1")],
    ids=["on", "off", "offloaded"],
)
def test_a_process_that_has_imported_torch(
    run: RunConfig, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank is forked from such a process, and PyTorch reads its variables no more than once."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert run_ranks(configured, 1, run, fresh=True) == [([expected], expected)]
    assert run_ranks(configured, 1, run, run, fresh=True) == [([expected] * 2, expected)]


@pytest.mark.parametrize("names", [slow(NAMES[:1]), slow(NAMES[1:]), NAMES])
def test_the_users_settings_stay(names: tuple[str, ...]) -> None:
    """The older variable goes first."""
    code = "from tests.bench.runner.test_allocator import *; print(configured(ON, OFF))"
    chosen = {name: f"max_split_size_mb:{32 << NAMES.index(name)}" for name in names}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | chosen, capture_output=True, text=True
    )
    expected = chosen[names[-1]]
    assert done.stdout == f"{([expected, expected], expected)}\n", done.stderr
