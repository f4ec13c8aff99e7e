"""Fixtures of every test, names of parametrised cases, and the order of files."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.support.ranks import close_worlds

LONGEST = (
    "faults/test_faults.py",
    "fuzz/test_fuzz.py",
    "bench/runner/test_launch.py",
    "scripts/test_cluster.py",
    "methods/test_toggles.py",
    "odysseus/parallel/test_ring.py",
    "docs/test_shipped.py",
    "bench/report/test_report.py",
    "bench/runner/test_join.py",
    "bench/runner/test_verify.py",
    "odysseus/io/test_checkpoint.py",
    "odysseus/model/test_liger.py",
    "odysseus/hf/test_hf.py",
    # of the whole matrix
    "fake_cuda/test_fake_cuda.py",
    "bench/commands/test_front.py",
    "bench/simulator/test_dry_run.py",
    "odysseus/hf/test_programs.py",
    "scripts/test_loops.py",
    "scripts/test_first_gpu.py",
    "methods/test_experts.py",
    "odysseus/model/test_liger_ranks.py",
    "bench/meters/test_memory.py",
)
"""Files that start first, so that no worker is left with one of them at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs unless their tests are asked for: cells of other tests have more ranks than a
    machine may have GPUs, and numbers of a CPU."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; otherwise the order stays. Refuse names that differ between the
    processes that share the tests."""
    if differ := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"the names of these cases have addresses in memory: {differ}")
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid[6:].split("::")[0], len(LONGEST)))


def pytest_make_parametrize_id(val: object) -> str | None:
    """Return a case's name from a tuple, list or dict of plain values; pytest names the others."""
    if isinstance(val, dict):
        return ",".join(f"{key}={value}" for key, value in val.items())[:60] or "none"
    if isinstance(val, tuple | list) and all(isinstance(v, bool | int | float | str) for v in val):
        return "x".join(map(str, val))[:60] or "none"
    return str(val).removeprefix("torch.") if isinstance(val, torch.dtype) else None


@pytest.fixture(scope="module", autouse=True)
def ranks_of_this_file() -> Iterator[None]:
    """End the ranks that the tests of a file shared."""
    yield
    close_worlds()
