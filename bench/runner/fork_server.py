"""Fork the ranks of a cell from a process that has imported all that they need.

This process runs no thread and touches no GPU, so that its forks are safe; each takes milliseconds.
It leads a process group, which :mod:`bench.runner.processes` kills as a whole. It ends by itself
when the process that started it ends, and its ranks end when it ends, by whatever signal.
"""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, NamedTuple, NoReturn

import torch.distributed as dist

from bench.runner import exhaustion


class Outcome(NamedTuple):
    """The end of the ranks of a cell.

    Attributes:
        rank: The first rank that failed; 0 if none did.
        error: Its exception or signal; empty if no rank failed.
        result: What rank 0 returned if no rank failed, else None.
    """

    rank: int
    error: str
    result: Any = None


class Ranks(NamedTuple):
    """The call that every rank of a cell makes; a pickle brings it through a pipe.

    Attributes:
        function: A module-level function.
        arguments: What it is called with.
        world_size: Number of ranks.
        folder: The working directory.
        environment: The environment variables.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    world_size: int
    folder: str
    environment: dict[str, str]


def serve(requests: Connection, answers: Connection, folder: str) -> NoReturn:
    """Answer each pickled :class:`Ranks` with its :class:`Outcome`, until the parent ends.

    Args:
        folder: A private folder for the stores in which ranks find each other; removed at the end.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    import torch._dynamo  # noqa: F401  DTensor imports it in the first step of every rank.

    lifeline = os.pipe()
    try:
        for number in itertools.count():
            request = requests.recv_bytes()
            try:
                ranks = pickle.loads(request)
                outcome = _run(ranks, os.path.join(folder, str(number)), requests, lifeline)
            except EOFError:
                raise
            except Exception as error:  # an unknown module; too many processes
                outcome = Outcome(0, described(error))
            answers.send(outcome)
    except (EOFError, BrokenPipeError):
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        _end_group()


def _end_group() -> NoReturn:
    """Kill this process and all ranks."""
    os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _run(ranks: Ranks, store: str, requests: Connection, lifeline: tuple[int, int]) -> Outcome:
    """Fork the ranks and wait for all of them; when one fails, kill the others.

    Args:
        store: File in which they find each other.
        lifeline: Read and write end of a pipe. Only this process keeps the write end open.

    Raises:
        EOFError: the parent has ended.
    """
    running: dict[Connection, tuple[int, int]] = {}
    result = None
    try:
        for rank in range(ranks.world_size):
            receiver, sender = Pipe(duplex=False)
            pid = os.fork()
            if not pid:
                os.close(lifeline[1])
                requests.close()
                _rank(ranks, rank, store, lifeline[0], sender)
            sender.close()
            running[receiver] = rank, pid
        while running:
            for ready in wait([requests, *running]):
                if ready is requests:
                    raise EOFError
                assert isinstance(ready, Connection)
                rank, pid = running.pop(ready)
                outcome = _ended(ready, rank, pid)
                if outcome.error:
                    return outcome
                result = result if rank else outcome.result
    finally:
        for receiver, (_, pid) in running.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            receiver.close()
        with suppress(FileNotFoundError):
            os.unlink(store)
    return Outcome(0, "", result)


def _ended(receiver: Connection, rank: int, pid: int) -> Outcome:
    """The outcome of a rank that has sent it, or whose pipe has closed."""
    try:
        outcome = receiver.recv()
    except EOFError:
        outcome = None
    receiver.close()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if outcome is None:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return Outcome(rank, how)
    return outcome


def _rank(ranks: Ranks, rank: int, store: str, lifeline: int, sender: Connection) -> NoReturn:
    """Call the function as one rank, send its outcome and end this process."""
    try:
        threading.Thread(target=_end_with_server, args=(lifeline,), daemon=True).start()
        os.chdir(ranks.folder)
        os.environ.clear()
        os.environ.update(ranks.environment)
        os.environ.update(rank_environment(rank, ranks.world_size, store))
        outcome = Outcome(rank, "", ranks.function(*ranks.arguments))
        sender.send(outcome if rank == 0 else Outcome(rank, ""))
    except BaseException as error:
        if follows_another(error):
            time.sleep(2)  # so that the other rank's failure is seen first
        sender.send(Outcome(rank, described(error)))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def rank_environment(rank: int, world_size: int, store: str) -> dict[str, str]:
    """The environment variables of one rank. Ranks find each other in a file and talk over the
    loopback interface only, unless the user has named another one.
    """
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    interfaces = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), loopback)
    return (
        interfaces
        | {name: value for name, value in os.environ.items() if name in interfaces}
        | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "ODYSSEUS_STORE": store,
        }
    )


def described(error: BaseException) -> str:
    """An exception's class and message, on one line."""
    return exhaustion.shortened(_text(error))


def follows_another(error: BaseException) -> bool:
    """Whether this error most likely follows from the end of another rank. Near the limit NCCL's
    own allocation is the first to fail."""
    of_a_peer = isinstance(error, dist.DistError) or "gloo" in str(error)
    return of_a_peer and exhaustion.status_of(_text(error)) is None


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _end_with_server(lifeline: int) -> None:
    """Kill this process when the pipe's other end closes, which only the server holds."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGKILL)
