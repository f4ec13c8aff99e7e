"""Cells whose workers torchrun or srun started: rank 0 writes the row, of whichever rank failed.

A rank that fails tells the store of the rendezvous. Rank 0 looks there when a collective fails
(gloo: the connection is closed), or when the launcher ends it while it hangs in one (NCCL).
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, TCPStore

from bench.runner import host_limit, launch
from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import HostMemoryError

Row = dict[str, Any]
Measure = Callable[[], Row]
Write = Callable[[Row], object]


def run_cell(run: RunConfig, measure: Measure, write: Write) -> str:
    """Be one of the workers of a job of one cell; the cell's status.

    Args:
        write: Takes the whole row, on rank 0.

    Raises:
        Exception: as :func:`measured`.
    """
    started = time.monotonic()

    def measure_if_it_fits() -> Row:
        if short := host_limit.shortage(run):
            raise HostMemoryError(short)
        return measure()

    def finish(outcome: Row) -> None:
        write(launch.finish_row(run, outcome, time.monotonic() - started))

    return measured(run, measure_if_it_fits, finish)


def measured(run: RunConfig, measure: Measure, write: Write) -> str:
    """Measure a cell as one of its workers; its status.

    Args:
        measure: What every rank measures.
        write: Takes it on rank 0, with status and error; those two alone if any rank failed.

    Raises:
        Exception: this rank, which is not rank 0, failed; that ends it, and the launcher the job.
    """
    is_first = os.environ["RANK"] == "0"
    with _heard_out(run, write) if is_first else nullcontext(lambda outcome: None) as finish:
        outcome = _outcome(run, measure)
        finish(outcome)
    return outcome["status"]


def _outcome(run: RunConfig, measure: Measure) -> Row:
    """As :func:`measured` has it."""
    rank = int(os.environ["RANK"])
    try:
        return {"status": "ok", "error": ""} | measure()
    except Exception as error:
        message, follows = f"{type(error).__name__}: {error}", launch.follows_another(error)
        if rank:
            if not follows:
                _tell(rank, message)
            raise
        told = _told() if follows else None
        return launch.failed_outcome(*(told or (0, message)), run)


@contextmanager
def _heard_out(run: RunConfig, write: Write) -> Iterator[Write]:
    """While SIGTERM ends this process only after the row of the rank that has failed, if one has
    said so, whatever the main thread hangs in. Yields `write`, which takes one row altogether."""
    lock, written = threading.Lock(), list[Row]()

    def once(row: Row) -> None:
        with lock:
            if not written:
                written.append(row)
                write(row)

    def listen() -> None:
        while number := os.read(heard, 1):
            if number[0] == signal.SIGTERM:
                if told := _told():
                    once(launch.failed_outcome(*told, run))
                with lock:  # whoever writes has written
                    os._exit(128 + signal.SIGTERM)
        os.close(heard)

    heard, signalled = os.pipe()
    os.set_blocking(signalled, False)
    threading.Thread(target=listen, daemon=True).start()
    before_fd = signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield once
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.set_wakeup_fd(before_fd)
        os.close(signalled)


def _store() -> PrefixStore | None:
    """The rendezvous' store as this attempt of the job sees it; None if it cannot be reached."""
    env = os.environ
    with suppress(KeyError, RuntimeError):
        timeout = timedelta(seconds=2)
        store = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), timeout=timeout)
        return PrefixStore(f"bench/{env.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    return None


def _tell(rank: int, message: str) -> None:
    """Let rank 0 know why this rank fails, if it is the first one."""
    with suppress(RuntimeError):
        if store := _store():
            store.compare_set("failed", "", json.dumps([rank, message]))


def _told() -> tuple[int, str] | None:
    """Who failed first, and why."""
    with suppress(RuntimeError):
        store = _store()
        if store and store.check(["failed"]):
            rank, message = json.loads(store.get("failed"))
            return rank, message
    return None
