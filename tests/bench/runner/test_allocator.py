"""CUDA's allocator: expandable segments are requested unless the user has set something else."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from bench.runner.allocator import configure_allocator
from odysseus.config.run import RunConfig

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
ON, OFF = RunConfig(), RunConfig(expandable_segments=False)
OURS = "expandable_segments:True"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what a test sets is undone after it
        monkeypatch.delenv(name)


def set_variables() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_it_is_on_by_default() -> None:
    assert configure_allocator(ON) == OURS
    assert set_variables() == {"PYTORCH_ALLOC_CONF": OURS}
    assert configure_allocator(ON) == OURS  # a second time too


def test_off_leaves_the_allocator_as_it_is() -> None:
    assert configure_allocator(OFF) == ""
    assert set_variables() == {}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("run", [ON, OFF], ids=["on", "off"])
def test_the_users_setting_stays(
    monkeypatch: pytest.MonkeyPatch, name: str, run: RunConfig
) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:64")
    assert configure_allocator(run) == "max_split_size_mb:64"
    assert set_variables() == {name: "max_split_size_mb:64"}


def test_offloading_is_not_rounded_up_to_powers_of_two() -> None:
    offload = replace(ON, activation_checkpoint_cpu_offload=True)
    assert configure_allocator(offload) == f"{OURS},pinned_max_round_threshold_mb:1"


def test_cudas_own_variable_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:32")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert configure_allocator(ON) == "max_split_size_mb:64"
