"""Host memory as a limit: messages before a cell starts and when one reaches the limit."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import rows
from bench.__main__ import main
from bench.config import launched
from bench.runner import host_limit, launch, processes
from methods import METHODS
from odysseus.config.run import OptimizerOptions, RunConfig
from odysseus.memory import host_memory
from odysseus.memory.host_memory import (
    HostMemory,
    HostMemoryError,
    machine_memory_bytes,
    node_limit_bytes,
    ranks_per_node,
)
from tests.support.small_runs import OFFLOADED

TOKEN = 2 * 64 * 2
"""Bytes of host memory for a token of the stream: of 3 blocks 2 inputs leave, 64 wide, in bf16."""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["none", "cpu"])
@pytest.mark.parametrize("n", [2, 4])
def test_the_longest_length_fits_and_the_next_does_not(method: Any, optimizer: Any, n: int) -> None:
    """`tp` offloads the whole stream on every rank, the other methods a shard."""
    run = replace(OFFLOADED, method=method, sequence_parallel_size=n)
    run = replace(run, optimizer=OptimizerOptions(offload=optimizer))
    fixed = host_limit.node_bytes(replace(run, activation_checkpoint_cpu_offload=False))
    assert (fixed > 0) == (optimizer == "cpu")
    a_token = TOKEN * (4 if method == "tp" else 4 // n)
    need = fixed + 256 * a_token
    assert host_limit.node_bytes(run) == need
    assert host_limit.shortage(replace(run, host_memory_limit_bytes=need)) == ""
    for limit in (need - 1, fixed + 100 * a_token, fixed + 100 * a_token - 1, fixed + n * a_token):
        short = replace(run, host_memory_limit_bytes=limit)
        longest = (limit - fixed) // (n * a_token) * n
        assert host_limit.shortage(short) == (
            f"offloading needs {need} bytes of host memory on this node, "
            f"host_memory_limit_bytes is {limit}; the longest seq_len that fits is {longest}"
        )
        assert host_limit.shortage(replace(short, seq_len=longest)) == ""
        assert host_limit.shortage(replace(short, seq_len=longest + n)) != ""
    nothing = replace(run, host_memory_limit_bytes=fixed + n * a_token - 1)
    assert host_limit.shortage(nothing).endswith(
        f"; no seq_len fits, {n} would need {fixed + n * a_token}"
    )


def test_a_run_without_offload_needs_no_host_memory() -> None:
    plain = replace(OFFLOADED, activation_checkpoint_cpu_offload=False, host_memory_limit_bytes=1)
    assert host_limit.shortage(plain) == ""


def test_the_launcher_gives_the_ranks_of_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks_per_node(4) == 4
    needed = host_limit.node_bytes(OFFLOADED)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert ranks_per_node(4) == 2
    assert host_limit.node_bytes(OFFLOADED) == needed // 2
    limited = replace(OFFLOADED, host_memory_limit_bytes=1000)
    assert HostMemory.for_run(limited, torch.device("cpu")).limit_bytes == 500


def test_a_smaller_control_group_limits_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < machine_memory_bytes() <= physical
    monkeypatch.setattr(host_memory, "_ALL_GROUPS", tmp_path)
    monkeypatch.setattr(host_memory, "_OWN_GROUP", tmp_path / "own")
    assert machine_memory_bytes() == physical  # there is no such file
    (tmp_path / "own").write_text("1:cpu:/elsewhere\n0::/job/step\n")
    (tmp_path / "job" / "step").mkdir(parents=True)
    group = tmp_path / "job" / "memory.max"
    (tmp_path / "job" / "step" / "memory.max").write_text("max\n")
    for text, expected in (
        ("max\n", physical),
        (f"{2 * physical}\n", physical),
        ("1000001\n", 1000001),
    ):
        group.write_text(text)
        assert machine_memory_bytes() == expected
    assert node_limit_bytes(RunConfig()) == 900000
    (tmp_path / "own").write_text("5:cpu,cpuacct:/\n4:memory:/job/step\n0::/elsewhere\n")
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine_memory_bytes() == physical
    (tmp_path / "memory" / "job" / "memory.limit_in_bytes").write_text("1000001\n")
    assert machine_memory_bytes() == 1000001
    assert node_limit_bytes(RunConfig(host_memory_limit_bytes=5)) == 5


def test_memory_that_cannot_be_page_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*shape: object, **options: object) -> None:
        assert options["pin_memory"]
        raise torch.AcceleratorError("CUDA error: out of memory")

    host, like = HostMemory(100, torch.device("cuda")), torch.zeros(2)
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(HostMemoryError, match="allocating host memory: CUDA error: out of memory"):
        host.empty(like)


@pytest.mark.parametrize(
    ("listed", "node", "expected"), [("8(x2)", "1", 8), ("8(x2),4", "2", 4), ("3", "0", 3)]
)
def test_slurm_tells_how_many_ranks_share_a_node(
    monkeypatch: pytest.MonkeyPatch, listed: str, node: str, expected: int
) -> None:
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", listed)
    monkeypatch.setenv("SLURM_NODEID", node)
    assert launched._tasks_on_this_node(20) == expected


def test_a_need_independent_of_the_length_is_reported() -> None:
    optimizer = replace(OFFLOADED, activation_checkpoint_cpu_offload=False)
    optimizer = replace(optimizer, optimizer=OptimizerOptions(offload="cpu"))
    assert host_limit.longest(optimizer) == "what is needed does not depend on seq_len"


def test_a_cell_that_cannot_fit_is_a_row_and_starts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def started(*_: object) -> None:
        raise AssertionError("a cell was started")

    monkeypatch.setattr(processes, "run_ranks", started)
    row = launch.run_cell(replace(OFFLOADED, host_memory_limit_bytes=100 * TOKEN))
    assert (row["status"], row["error"]) == (
        "oom_cpu",
        f"offloading needs {256 * TOKEN} bytes of host memory on this node, "
        f"host_memory_limit_bytes is {100 * TOKEN}; the longest seq_len that fits is 100",
    )
    assert set(row) <= set(rows.COLUMNS)


def _takes_a_byte_too_many(run: RunConfig) -> dict[str, object]:
    HostMemory.for_run(run, torch.device("cpu")).claim(run.host_memory_limit_bytes // 2 + 1)
    return {}


def test_running_into_the_limit_is_a_row_that_says_what_fits() -> None:
    limit = 2**20
    run = replace(OFFLOADED, world_size=2, host_memory_limit_bytes=limit)
    row = launch.run_cell(run, _takes_a_byte_too_many)
    assert row["status"] == "oom_cpu"
    match = re.fullmatch(
        r"rank [01]: HostMemoryError: offloading needs (\d+) bytes of host memory on this rank, "
        r"whose share of host_memory_limit_bytes is (\d+); the longest seq_len that fits is (\d+)",
        row["error"],
    )
    assert match is not None, row["error"]
    assert [int(number) for number in match.groups()] == [
        limit // 2 + 1,
        limit // 2,
        limit // TOKEN,
    ]


FLAGS = (
    "--model.num_hidden_layers 3 --model.hidden_size 64 --model.intermediate_size 64 "
    "--steps 1 --warmup_steps 0 --activation_checkpoint_cpu_offload true"
)


def test_run_says_so_in_a_line_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.csv"
    flags = f"run {FLAGS} --seq_len 256 --host_memory_limit_bytes 1000 --out {out}"
    assert main(flags.split()) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == (
        f"oom_cpu: offloading needs {256 * 2 * TOKEN} bytes of host memory on this node, "
        "host_memory_limit_bytes is 1000; the longest seq_len that fits is 1"
    )
    assert list(rows.read(out)["status"]) == ["oom_cpu"]


def _out_of_device_memory(run: RunConfig) -> dict[str, object]:
    if run.seq_len == 512:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    from bench.runner import worker

    return worker.measure(run)


def test_a_sweep_goes_on_past_cells_that_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The longest cell needs more host memory than the machine has; the one before it, more device
    memory."""
    run_round = launch.run_round
    monkeypatch.setattr(
        launch, "run_round", lambda run, is_first: run_round(run, _out_of_device_memory)
    )
    out, limit = tmp_path / "rows.csv", 512 * 2 * TOKEN
    flags = f"sweep {FLAGS} --seq_len [1024,512,64] --host_memory_limit_bytes {limit} --out {out}"
    assert main(flags.split()) == 1
    printed = capfd.readouterr()
    assert "3 cells: 0 had rows, 1 ok, 2 failed" in printed.out
    assert "the longest seq_len that fits is 512" in printed.err
    table = rows.read(out)
    assert list(table["status"]) == ["oom_cpu", "oom_gpu", "ok"]
    assert list(table["seq_len"]) == ["1024", "512", "64"]
    assert table["error"][1] == "rank 0: OutOfMemoryError: CUDA out of memory."
    assert table["peak_host_bytes"][2] == table["theory_peak_host_bytes"][2] == str(64 * 2 * TOKEN)
