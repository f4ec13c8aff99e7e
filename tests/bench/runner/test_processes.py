"""Ranks in new processes: what they listen on, what stops them, and what they leave behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from bench.runner import launch, processes
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.parallel.mesh import start_process_group
from tests.support.paths import ROOT

LOOPBACK = ("127.", "::1", "::ffff:127.")
TWO_RANKS: dict[str, Any] = {"world_size": 2, "timeout_s": 60}


def sockets() -> list[str]:
    """Start a process group. Return the own addresses of this rank's internet sockets."""
    start_process_group(torch.device("cpu"), 60)
    dist.all_reduce(torch.ones(3))
    addresses = [c.laddr.ip for c in psutil.Process().net_connections("inet") if c.laddr]
    dist.barrier()
    ranks: list[Any] = [None, None]
    dist.all_gather_object(ranks, addresses)
    return [address for addresses in ranks for address in addresses]


def test_ranks_and_their_starter_use_the_loopback_interface_only() -> None:
    before = {c.laddr for c in psutil.Process().net_connections("inet")}
    outcome = processes.run_ranks(sockets, **TWO_RANKS)
    assert outcome.error == ""
    assert len(outcome.result) >= 2, "ranks talk over sockets"
    assert [address for address in outcome.result if not address.startswith(LOOPBACK)] == []
    (server,) = processes._servers
    assert psutil.Process(server.pid).net_connections("inet") == []
    assert {c.laddr for c in psutil.Process().net_connections("inet")} <= before


def send_to_server(number: signal.Signals) -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getppid(), number)
    time.sleep(600)


def group_ends(leader: int) -> bool:
    """Whether every process of a group ends within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def started_server() -> processes._Server:
    assert processes.run_ranks(int, **TWO_RANKS).result == 0
    return processes._servers[0]


def test_a_stopped_server_is_killed_with_its_ranks_when_the_time_is_over() -> None:
    server, started = started_server(), time.monotonic()
    with pytest.raises(TimeoutError, match="timeout_s = 2"):
        processes.run_ranks(send_to_server, signal.SIGSTOP, world_size=2, timeout_s=2)
    assert time.monotonic() - started < 8
    assert group_ends(server.pid)
    assert not Path(server.folder).exists()


def test_a_killed_server_is_an_error_and_the_next_cell_runs() -> None:
    server = started_server()
    outcome = processes.run_ranks(send_to_server, signal.SIGKILL, **TWO_RANKS)
    assert outcome.error == "the process that starts the ranks was killed"
    assert group_ends(server.pid)
    assert started_server().pid != server.pid


def interrupt(pid: int, number: signal.Signals) -> None:
    if os.environ["RANK"] == "0":
        os.kill(pid, number)
    time.sleep(600)


@pytest.mark.parametrize("number", processes.STOPPING)
def test_a_signal_ends_the_ranks_and_handlers_are_restored(number: signal.Signals) -> None:
    server, before = started_server(), signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        processes.run_ranks(interrupt, os.getpid(), number, **TWO_RANKS)
    assert stopped.value.code == 128 + number
    assert group_ends(server.pid)
    assert signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1


class Panic(BaseException):
    """An exception that a library of another language raises."""


def panic() -> None:
    raise Panic("index out of bounds\nnote: run with a backtrace")


def unpicklable() -> Callable[[], None]:
    return lambda: None


def end() -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("function", "error"),
    [(panic, "Panic: index out of bounds"), (unpicklable, "<lambda>"), (end, "exit status 3")],
)
def test_however_a_rank_ends_its_reason_is_told(function: Callable[[], Any], error: str) -> None:
    outcome = processes.run_ranks(function, world_size=1, timeout_s=60)
    assert error in outcome.error
    assert "\n" not in outcome.error


def test_a_cell_with_too_few_free_file_descriptors_is_a_row() -> None:
    run = RunConfig(model=ModelOptions(num_hidden_layers=1, hidden_size=64, intermediate_size=64))
    started_server()
    processes._servers.pop().end()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 4, hard))
    try:
        row = launch.run_cell(run)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert row["status"] == "error"
    assert row["error"].startswith("no workers could be started: [Errno 24]")


def surroundings() -> tuple[str, str]:
    return os.getcwd(), os.environ["LATER"]


def test_ranks_run_where_the_caller_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder and the environment are those of the call, not of the server's start."""
    started_server()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATER", "set")
    assert processes.run_ranks(surroundings, **TWO_RANKS).result == (str(tmp_path), "set")


def test_stores_are_removed_after_each_cell() -> None:
    processes.run_ranks(sockets, **TWO_RANKS)
    assert os.listdir(processes._servers[0].folder) == []


STOPPED = """
import os, signal
from bench.runner import processes
processes.run_ranks(os.getpid, world_size=1, timeout_s=60)
os.kill(processes._servers[0].pid, signal.SIGSTOP)
"""
"""A script whose server is stopped when it ends."""


def test_a_server_that_is_stopped_at_the_end_leaves_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", STOPPED], env=environment, cwd=ROOT, check=True)
    assert [*tmp_path.glob("odysseus-*")] == []


TERMINATED = """
import os, signal
from bench.runner import processes, signals
signal.signal(signal.SIGTERM, lambda number, _: signals.end(number))
def terminate_before(name):
    function = getattr(os, name)
    def terminated(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **options)
    setattr(os, name, terminated)
terminate_before({name!r})
processes._start(processes._spawned)
"""
"""A script that SIGTERM ends before one call, while its server is started or killed at the end."""


@pytest.mark.parametrize("name", ["posix_spawn", "waitpid"])
def test_a_signal_while_a_server_is_started_or_killed_leaves_nothing(
    tmp_path: Path, name: str
) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    script = TERMINATED.format(name=name)
    ended = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, check=False)
    assert ended.returncode == 128 + signal.SIGTERM
    assert [*tmp_path.glob("odysseus-*")] == []
