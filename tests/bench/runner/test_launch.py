"""Cells in their own processes: the rows that they write, and the processes that remain when they
are stopped."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
import torch.distributed as dist

from bench import rows
from bench.__main__ import main
from bench.runner import launch
from odysseus.config.run import DataOptions, ModelOptions, RunConfig
from odysseus.parallel.mesh import start_process_group
from tests.support.launched import SMALL, bench, finished, one_row

ENDLESS = f"{SMALL} --world_size 2 --seq_len 512 --steps 1000000"
MODEL = ModelOptions(num_hidden_layers=1, hidden_size=64, intermediate_size=64)


@contextmanager
def workers_of(process: subprocess.Popen[str], count: int) -> Iterator[list[psutil.Process]]:
    """Yield the workers once they work; afterwards check that all have ended."""
    deadline = time.monotonic() + 60
    workers: list[psutil.Process] = []
    while len(workers) < count:
        assert time.monotonic() < deadline, "the workers did not start"
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
        helpers = psutil.Process(process.pid).children(recursive=True)
        workers = [p for p in helpers if not p.children() and p.cpu_times().user > 0.3]
    yield workers
    _, alive = psutil.wait_procs(helpers, timeout=10)
    assert alive == []


@pytest.mark.alone
def test_run_appends_one_whole_row(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    flags = f"run {SMALL} --world_size 4 --seq_len 1024 --steps 2 --warmup_steps 1 --out {out}"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    status, said, err = finished(bench(*flags.split(), TMPDIR=str(temporary)))
    assert (status, err) == (0, "")
    row = one_row(out)
    assert tuple(row) == rows.COLUMNS
    assert row["status"] == "ok"
    assert row["mode"] == "measured"
    assert row["device"] == "cpu"
    assert row["comm_bytes_total"] == row["theory_comm_bytes_total"]
    kinds = [v for c, v in row.items() if re.fullmatch(r"peak_memory_\w+_bytes", c)]
    assert sum(map(int, kinds)) == int(row["peak_memory_bytes"])
    assert float(row["loss_last"]) < float(row["loss_first"])
    assert "4 x cpu, 1024 tokens" in said
    # What a cell costs beyond its 3 steps and the 2 metered ones.
    assert float(row["wall_s"]) - 5 * float(row["step_ms_p80"]) / 1e3 < 8


@pytest.mark.slow
def test_a_hybrid_prints_the_placement_of_its_axes(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    flags = (
        f"run {SMALL} --world_size 4 --ring_parallel_size 2 --seq_len 1024 --steps 1 --out {out}"
    )
    status, said, err = finished(bench(*flags.split()))
    assert (status, err) == (
        0,
        "placement: 4 ranks on one node = dp 1 x ring 2 x sp 2: "
        "sequence axis inside a node, ring inside a node\n",
    )
    assert "odysseus x ring 2 on 4 x cpu" in said
    row = one_row(out)
    assert (row["ring_parallel_size"], row["ring_order"], row["ring_backend"]) == (
        "2",
        "zigzag",
        "native",
    )
    assert row["comm_bytes_total"] == row["theory_comm_bytes_total"]
    assert int(row["comm_bytes_p2p"]) > 0
    assert float(row["attention_flops_max"]) == float(row["attention_flops_mean"]) > 0


@pytest.mark.slow
def test_a_killed_worker_is_an_error_row_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    process = bench("run", *ENDLESS.split(), "--out", str(out))
    with workers_of(process, 2) as workers:
        workers[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        status, _, err = finished(process, 30)
        assert time.monotonic() - killed < 30
    assert status == 1
    row = one_row(out)
    assert row["status"] == "error"
    assert "killed by SIGKILL" in row["error"]
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_sweep_goes_on_past_a_killed_cell(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    flags = f"{SMALL} --world_size 2 --seq_len 512 --steps 200 --seed [0,1] --out {out}"
    process = bench("sweep", *flags.split())
    with workers_of(process, 2) as workers:
        workers[0].kill()
        status, said, _ = finished(process)
    assert status == 1
    assert list(rows.read(out)["status"]) == ["error", "ok"]
    assert "2 cells: 0 had rows, 1 ok, 1 failed" in said


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_process_and_no_row(tmp_path: Path, sent: signal.Signals) -> None:
    out = tmp_path / "rows.csv"
    process = bench("run", *ENDLESS.split(), "--out", str(out))
    with workers_of(process, 2):
        process.send_signal(sent)
        status, _, err = finished(process, 30)
    assert status == 128 + sent
    assert "Traceback" not in err
    assert not out.exists()


@pytest.mark.slow
def test_a_killed_parent_takes_its_workers_along(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    flags = [*ENDLESS.split(), "--out", str(tmp_path / "rows.csv")]
    process = bench("run", *flags, TMPDIR=str(temporary))
    with workers_of(process, 2), process:  # closes its pipes, which the workers may still hold
        process.kill()
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_a_cell_that_takes_too_long_is_a_timeout_row(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    flags = [*ENDLESS.split(), "--timeout_s", "4", "--out", str(out)]
    status, _, _ = finished(bench("run", *flags), 60)
    assert status == 1
    assert one_row(out)["status"] == "timeout"
    assert "timeout_s = 4" in one_row(out)["error"]


def _hang_in_a_collective(run: RunConfig) -> dict[str, object]:
    start_process_group(torch.device("cpu"), run.timeout_s)
    if dist.get_rank() == 1:
        time.sleep(600)
    dist.barrier()
    return {}


def test_a_hung_collective_is_a_timeout_row() -> None:
    run = RunConfig(model=MODEL, world_size=2, timeout_s=4)
    row = launch.run_cell(run, _hang_in_a_collective)
    assert (row["status"], row["error"]) == ("timeout", "stopped after timeout_s = 4")
    assert float(row["wall_s"]) < 30


_FAILURES = {
    "value": ValueError("the weights are not there"),
    "memory": MemoryError("no more"),
    "cuda": torch.OutOfMemoryError("CUDA out of memory."),
}


def _fail_on_rank_one(run: RunConfig) -> dict[str, object]:
    start_process_group(torch.device("cpu"), run.timeout_s)
    if dist.get_rank() == 1:
        raise _FAILURES[run.data.path]
    dist.barrier()
    return {}


@pytest.mark.parametrize(
    ("kind", "status", "error"),
    [
        ("value", "error", "rank 1: ValueError: the weights are not there"),
        ("memory", "oom_cpu", "rank 1: MemoryError: no more"),
        ("cuda", "oom_gpu", "rank 1: OutOfMemoryError: CUDA out of memory."),
    ],
)
def test_the_first_failing_rank_speaks(kind: str, status: str, error: str) -> None:
    """Other ranks fail too, because a connection closed, and must not be reported."""
    data = DataOptions(path=kind)
    run = RunConfig(model=MODEL, world_size=3, sequence_parallel_size=1, data=data)
    row = launch.run_cell(run, _fail_on_rank_one)
    assert (row["status"], row["error"]) == (status, error)


def test_a_sweep_resumes_keeps_going_and_marks_the_impossible(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, grid = tmp_path / "rows.csv", tmp_path / "grid.yml"
    grid.write_text(
        "method: [tp, ulysses]\nworld_size: [1, 3]\nseq_len: 64\nsteps: 1\nwarmup_steps: 0\n"
        "model: {num_hidden_layers: 1, hidden_size: 64, intermediate_size: 64}\n"
    )
    sweep = ["sweep", "--config", str(grid), "--out", str(out)]
    assert main(sweep) == 1
    said, err = capsys.readouterr()
    assert "4 cells: 0 had rows, 2 ok, 2 failed" in said
    assert "sequence_parallel_size = 3" in err
    table = rows.read(out)
    assert list(table["status"]) == ["ok", "invalid", "ok", "invalid"]

    # A sweep killed after its first row goes on from there; finished rows stay as they are.
    table.iloc[:1].to_csv(out, index=False)
    assert main(sweep) == 1
    assert "4 cells: 1 had rows, 1 ok, 2 failed" in capsys.readouterr().out
    again = rows.read(out)
    assert list(again["status"]) == ["ok", "invalid", "ok", "invalid"]
    pd.testing.assert_series_equal(again.iloc[0], table.iloc[0])
    assert main(sweep) == 0
    assert "4 cells: 4 had rows, 0 ok, 0 failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_sweep_loses_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.csv"
    flags = f"sweep {SMALL} --world_size 1 --seq_len 64 --steps 1 --seed [0,1,2,3] --out {out}"
    process = bench(*flags.split())
    deadline = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    kept = rows.read(out)
    assert set(kept["status"]) == {"ok"}
    assert main(flags.split()) == 0
    said = capsys.readouterr().out
    assert f"4 cells: {len(kept)} had rows, {4 - len(kept)} ok, 0 failed" in said
