"""A rank that fails on a GPU is known by its own message, although NCCL lets no peer go."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from bench.runner import launch
from odysseus.config.run import RunConfig
from tests.fake_cuda.blocking_nccl import measure
from tests.support.launched import SMALL, one_row
from tests.support.marks import slow
from tests.support.paths import ROOT

SECONDS = 30
"""Time in which every rank has ended."""
ROWS = {
    "memory": (
        "oom_gpu",
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ),
    "nccl": (
        "oom_gpu",
        "DistBackendError: NCCL error in: NCCLUtils.cpp:37; Failed to CUDA calloc 4 bytes",
    ),
    "value": ("error", "ValueError: the weights are not there"),
}


@pytest.mark.parametrize("failure", ROWS)
@pytest.mark.parametrize("rank", [0, slow(1)])
def test_a_cell(failure: str, rank: int) -> None:
    started = time.monotonic()
    row = launch.run_cell(RunConfig(world_size=2), partial(measure, f"{failure}:{rank}"))
    assert time.monotonic() - started < SECONDS
    status, error = ROWS[failure]
    assert (row["status"], row["error"]) == (status, f"rank {rank}: {error}")


def test_a_cell_that_hangs() -> None:
    run = RunConfig(world_size=2, timeout_s=4)
    row = launch.run_cell(run, partial(measure, "nothing:0"))
    assert (row["status"], row["error"]) == ("timeout", "stopped after timeout_s = 4")


@pytest.mark.parametrize(
    ("verb", "failure", "rank"),
    [
        ("sweep", "memory", 0),
        *(slow(verb, "memory", rank) for verb, rank in (("run", 0), ("run", 1), ("sweep", 1))),
        *(slow(verb, "value", rank) for verb in ("run", "sweep") for rank in (0, 1)),
    ],
)
def test_a_job_of_torchrun(tmp_path: Path, verb: str, failure: str, rank: int) -> None:
    out = tmp_path / "rows.csv"
    job = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    job += ["-m", "tests.fake_cuda.blocking_nccl", f"{failure}:{rank}", verb, *SMALL.split()]
    process = subprocess.Popen(
        [*job, "--world_size", "2", "--out", str(out)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    begun = psutil.Process(process.pid)
    ranks: list[psutil.Process] = []
    while len(ranks) < 2:
        ranks = begun.children(recursive=True)
        time.sleep(0.1)
    try:
        _, err = process.communicate(timeout=SECONDS)
    finally:
        left = [rank for rank in ranks if rank.is_running()]
        for one in (process, *left):
            one.kill()
    assert left == []
    assert process.returncode == 1, err
    row = one_row(out)
    status, error = ROWS[failure]
    assert (row["status"], row["error"]) == (status, f"rank {rank}: {error}")
