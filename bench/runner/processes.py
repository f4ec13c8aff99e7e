"""Run a function on the ranks of a cell, in new processes that a time limit or a signal ends.

A :mod:`bench.runner.fork_server` forks the ranks. This process only waits, at one place; it raises
no exception from a signal handler, and it can always kill all ranks at once.
"""

from __future__ import annotations

import atexit
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from bench.runner import fork_server
from bench.runner.fork_server import Outcome, Ranks
from bench.runner.signals import before_end, received_signals


@dataclass(frozen=True)
class _Server:
    """A started fork server.

    Attributes:
        pid: Its process, and the process group of all its ranks.
        folder: Its private folder.
        requests: Pipe to it.
        answers: Pipe from it.
    """

    pid: int
    folder: str
    requests: Connection
    answers: Connection

    def end(self) -> None:
        """Kill the server and all ranks, whatever they are doing, and remove the folder."""
        with before_end(self._remove_folder):
            with suppress(OSError):  # the whole group has ended
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.requests.close()
            self.answers.close()
            self._remove_folder()

    def _remove_folder(self) -> None:
        for _ in range(100):  # a rank that is being killed may still write there
            shutil.rmtree(self.folder, ignore_errors=True)
            if not os.path.exists(self.folder):
                return
            time.sleep(0.01)


STOPPING = (signal.SIGINT, signal.SIGTERM)
"""Signals that end the ranks and this process."""

_servers: list[_Server] = []
"""The server of this process, if it has one."""


def run_ranks(
    function: Callable[..., Any], *arguments: Any, world_size: int, timeout_s: float
) -> Outcome:
    """Call a function on every rank of a new group of processes; wait until all have ended.

    Args:
        function: A module-level function. Its ranks join by
            :func:`odysseus.parallel.mesh.start_process_group`.
        timeout_s: Seconds after which all ranks are killed.

    Raises:
        OSError: the processes cannot be started.
        TimeoutError: the ranks did not end in time.
        SystemExit: after SIGINT or SIGTERM, with status 128 + its number.
    """
    deadline = time.monotonic() + timeout_s
    with received_signals(*STOPPING) as received:
        if not _servers:
            _start(_spawned)
        server = _servers[0]
        usable = False
        try:
            ranks = Ranks(function, arguments, world_size, os.getcwd(), dict(os.environ))
            server.requests.send_bytes(pickle.dumps(ranks))
            while server.answers not in (ready := _wait(server.answers, received, deadline)):
                if not ready:
                    raise TimeoutError(too_long(timeout_s))
                if (number := os.read(received, 1)[0]) in STOPPING:
                    raise SystemExit(128 + number)
            outcome = server.answers.recv()
            usable = True
        except (EOFError, BrokenPipeError):
            outcome = Outcome(0, "the process that starts the ranks was killed")
        finally:
            if not usable:
                _servers.remove(server)
                server.end()
    return outcome


def too_long(timeout_s: float, rounds: int = 1) -> str:
    """Return the error of ranks that were stopped after timeout_s, or after rounds x timeout_s."""
    return f"stopped after {f'{rounds} x ' * (rounds > 1)}timeout_s = {timeout_s}"


def fork_now() -> None:
    """Fork the server from this process, which has imported all that ranks need, runs no thread and
    has touched no GPU. Without this call, the first cell starts a server that imports all again.

    Raises:
        OSError: the process cannot be started.
    """
    _start(_forked)


@atexit.register
def _end_servers() -> None:
    """End this process's server. It ends by itself too, but not while it is stopped."""
    while _servers:
        _servers.pop().end()


Ends = tuple[Connection, Connection]
"""The read and the write end of a pipe."""


def _start(create: Callable[[Ends, Ends, str], int]) -> None:
    """Start a server and keep it.

    Args:
        create: Returns the pid of a process that serves the two pipes.
    """
    requests, answers = Pipe(duplex=False), Pipe(duplex=False)
    folder = tempfile.mkdtemp(prefix="odysseus-")
    with before_end(partial(shutil.rmtree, folder, ignore_errors=True)):
        pid = create(requests, answers, folder)
        requests[0].close()
        answers[1].close()
        _servers.append(_Server(pid, folder, requests[1], answers[0]))


def _forked(requests: Ends, answers: Ends, folder: str) -> int:
    """Fork this process as the server."""
    if pid := os.fork():
        with suppress(OSError):  # the child has done it, or has ended
            os.setpgid(pid, pid)
        return pid
    os.setpgid(0, 0)
    requests[1].close()
    answers[0].close()
    fork_server.serve(requests[0], answers[1], folder)


def _spawned(requests: Ends, answers: Ends, folder: str) -> int:
    """Start a new Python as the server."""
    ends = requests[0].fileno(), answers[1].fileno()
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from multiprocessing.connection import Connection\n"
        "from bench.runner.fork_server import serve\n"
        f"requests = Connection({ends[0]}, writable=False)\n"
        f"serve(requests, Connection({ends[1]}, readable=False), {folder!r})\n"
    )
    for end in ends:
        os.set_inheritable(end, True)
    return os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ, setpgroup=0)


def _wait(answers: Connection, received: int, deadline: float) -> list[Any]:
    """Wait for an answer or a signal; return those that came, none if neither came in time."""
    return wait([answers, received], max(0.0, deadline - time.monotonic()))
