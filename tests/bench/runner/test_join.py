"""Cells that torchrun or srun started: there is a row, whichever rank failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import torch

from bench.__main__ import main
from bench.runner import host_limit, join, signals
from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import HostMemoryError
from tests.support.launched import SMALL, bench, finished, one_row
from tests.support.marks import slow
from tests.support.paths import ROOT
from tests.support.small_runs import OFFLOADED

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]


def test_the_row_of_the_first_rank_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    write = Mock()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert join.run_cell(RunConfig(), fail, write) == "oom_gpu"
    ((row,),) = (call.args for call in write.call_args_list)
    assert row["error"] == "rank 0: OutOfMemoryError: CUDA out of memory."
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(torch.OutOfMemoryError):
        join.run_cell(RunConfig(), fail, write)
    assert write.call_count == 1


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_host_that_is_too_small(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is written before any process group starts."""
    measure, write = Mock(), Mock()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    run = replace(OFFLOADED, host_memory_limit_bytes=1)
    if rank == "1":
        with pytest.raises(HostMemoryError, match="offloading needs"):
            join.run_cell(run, measure, write)
    else:
        assert join.run_cell(run, measure, write) == "oom_cpu"
        ((row,),) = (call.args for call in write.call_args_list)
        assert row["error"] == f"rank 0: HostMemoryError: {host_limit.shortage(run)}"
    assert not measure.called


@pytest.mark.parametrize(
    ("verb", "meanwhile"),
    [("run", "hangs"), slow("sweep", "reduces"), slow("run", "reduces"), slow("sweep", "hangs")],
)
def test_the_row_names_another_rank_that_fails(tmp_path: Path, verb: str, meanwhile: str) -> None:
    """The row names that rank, whether rank 0's collective then fails or never returns."""
    out = tmp_path / "rows.csv"
    job = [*TORCHRUN, "-m", "tests.support.joined_job", meanwhile, verb, *SMALL.split()]
    done = subprocess.run(
        [*job, "--world_size", "2", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    row = one_row(out)
    assert (row["status"], row["error"]) == (
        "oom_gpu",
        "rank 1: OutOfMemoryError: CUDA out of memory.",
    )


@pytest.mark.parametrize("verb", ["run", slow("sweep")])
def test_a_job_that_hangs_ends_with_a_row(tmp_path: Path, verb: str) -> None:
    """Rank 0 waits for a collective that rank 1 does not enter; neither fails."""
    out = tmp_path / "rows.csv"
    job = [*TORCHRUN, "-m", "tests.support.joined_job", "stalls", verb, *SMALL.split()]
    done = subprocess.run(
        [*job, "--world_size", "2", "--timeout_s", "3", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    row = one_row(out)
    assert (row["status"], row["error"]) == ("timeout", "stopped after timeout_s = 3")


def test_every_round_of_a_cell_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    class Alarm(threading.Thread):
        def __init__(self, seconds: float, act: object) -> None:
            super().__init__(target=lambda: None)
            limits.append(seconds)

        def cancel(self) -> None:
            pass

    monkeypatch.setattr(threading, "Timer", Alarm)
    monkeypatch.setenv("RANK", "0")
    for rounds in (1, 3):
        run = RunConfig(rounds=rounds, timeout_s=7)
        assert join.run_cell(run, dict, Mock()) == "ok"
    assert limits == [7, 21]


def test_a_row_that_cannot_be_written_ends_the_job_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = Event()
    monkeypatch.setattr(signals, "end", lambda number: ended.set())
    monkeypatch.setenv("RANK", "0")

    def write(row: object) -> None:
        if not ended.is_set():
            raise OSError("No space left on device")

    def measure() -> dict[str, Any]:
        assert ended.wait(20)
        return {}

    join.run_cell(RunConfig(timeout_s=1), measure, write)
    assert capsys.readouterr().err == "No space left on device\n"


@pytest.mark.slow
def test_a_job_that_is_ended_leaves_no_row(tmp_path: Path) -> None:
    """A sweep that is started again then runs this cell again."""
    out, begun = tmp_path / "rows.csv", tmp_path / "begun"
    job = [*TORCHRUN, "-m", "tests.support.joined_job", f"waits:{begun}", "run", *SMALL.split()]
    process = subprocess.Popen(
        [*job, "--world_size", "2", "--out", str(out)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not begun.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) != 0
    assert not out.exists()


@pytest.mark.parametrize("launcher", ["torchrun", slow("srun")])
def test_run_joins_workers_that_a_launcher_started(tmp_path: Path, launcher: str) -> None:
    out = tmp_path / "rows.csv"
    flags = f"{SMALL} --world_size 2 --seq_len 64 --steps 1 --out {out}".split()
    if launcher == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
        command += ["--standalone", "-m", "bench", "run", *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    else:
        step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NUM_TASKS": "2"}
        tasks = [
            bench("run", *flags, **step, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in "01"
        ]
        assert [finished(task)[0] for task in tasks] == [0, 0]
    assert one_row(out)["status"] == "ok"
    assert one_row(out)["world_size"] == "2"


@pytest.mark.slow
def test_a_sweep_joins_workers_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += ["-m", "bench", "sweep", *f"{SMALL} --world_size 2 --steps 1 --out {out}".split()]

    for lengths, failed, statuses in (
        ("[64]", 0, ["ok"]),
        ("[65,64,128]", 1, ["ok", "invalid", "ok"]),
    ):
        flags = ["--seq_len", lengths, "--method", "ulysses"]
        done = subprocess.run(
            [*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == failed, done.stderr
        assert list(pd.read_csv(out)["status"]) == statuses


def test_a_sweep_of_other_ranks_than_were_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "rows.csv"
    assert main(["sweep", "--seq_len", "64", "--world_size", "4", "--out", str(out)]) == 2
    assert "the launcher started 2 processes" in capsys.readouterr().err
    assert not out.exists()
