"""Cells whose workers torchrun or srun started: rank 0 writes the row, also when another rank
fails.

A rank that fails reports why in the rendezvous' store. Rank 0 reads the store when one of its
collectives fails (gloo closes the connection), or when the launcher sends SIGTERM while rank 0
hangs in a collective (NCCL). If no rank fails, rank 0 ends the job after timeout_s.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, TCPStore

from bench.config.launched import is_first_rank, own_rank
from bench.runner import fork_server, host_limit, launch, processes, signals
from bench.runner.rounds import rounds_of
from bench.runner.signals import received_signals
from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import HostMemoryError

Row = dict[str, Any]
Measure = Callable[[], Row]
Write = Callable[[Row], object]


def run_cell(run: RunConfig, measure: Measure, write: Write) -> str:
    """Measure a cell as one of its workers, unless offloading needs too much host memory. Return
    the cell's status.

    Args:
        write: Called on rank 0 with the complete row.

    Raises:
        Exception: as :func:`measured`.
    """
    started = time.monotonic()

    def measure_if_it_fits() -> Row:
        if short := host_limit.shortage(run):
            raise HostMemoryError(short)
        return measure()

    def finish(outcome: Row) -> None:
        write(launch.finish_row(run, [outcome], time.monotonic() - started))

    return measured(run, measure_if_it_fits, finish, rounds_of(run))


def measured(run: RunConfig, measure: Measure, write: Write, rounds: int = 1) -> str:
    """Measure a cell as one of its workers. Return the cell's status.

    Args:
        measure: Returns the measured columns; called on every rank.
        write: Called on rank 0 with these columns, status and error; with status and error alone
            if any rank failed.
        rounds: Rounds that are measured; each may take the run's timeout_s.

    Raises:
        Exception: this rank is not rank 0 and failed. The process ends, and the launcher stops the
            job.
    """
    is_first = is_first_rank()
    with _one_row(run, write, rounds) if is_first else nullcontext(_ignore) as finish:
        outcome = _outcome(run, measure)
        finish(outcome)
    return outcome["status"]


def _ignore(outcome: Row) -> None:
    """Take the outcome of a rank that writes no row."""


def _outcome(run: RunConfig, measure: Measure) -> Row:
    """This rank's columns with status and error, or those two alone; raises as :func:`measured`."""
    rank = own_rank()
    try:
        return {"status": "ok", "error": ""} | measure()
    except Exception as error:
        message, follows = fork_server.described(error), fork_server.follows_another(error)
        if rank:
            if not follows:
                _report_failure(rank, message)
            raise
        first = _first_failure() if follows else None
        return launch.failed_outcome(*(first or (0, message)), run)


@contextmanager
def _one_row(run: RunConfig, write: Write, rounds: int) -> Iterator[Callable[[Row], bool]]:
    """Yield `write` limited to one row; it returns whether it wrote.

    SIGTERM ends this process only after the row of a reported failure. After the rounds' time a row
    is written and the process ends. Both happen even if the main thread hangs.
    """
    lock, written = threading.Lock(), list[Row]()

    def once(row: Row) -> bool:
        with lock:
            if written:
                return False
            written.append(row)
            write(row)
            return True

    def listen(received: int) -> None:
        while number := os.read(received, 1):
            if number[0] == signal.SIGTERM:
                try:
                    if failure := _first_failure():
                        once(launch.failed_outcome(*failure, run))
                finally:
                    with lock:  # a row that is being written is complete
                        signals.end(signal.SIGTERM)
        os.close(received)

    def stop() -> None:
        failure = _first_failure()
        late = {"status": "timeout", "error": processes.too_long(run.timeout_s, rounds)}
        try:
            if not once(launch.failed_outcome(*failure, run) if failure else late):
                return
        except Exception as error:  # the row was not saved
            print(error, file=sys.stderr, flush=True)
        sys.stdout.flush()
        signals.end(signal.SIGALRM)

    alarm = threading.Timer(rounds * run.timeout_s, stop)
    alarm.daemon = True
    with received_signals(signal.SIGTERM) as received:
        threading.Thread(target=listen, args=(os.dup(received),), daemon=True).start()
        alarm.start()
        try:
            yield once
        finally:
            alarm.cancel()


def _store() -> PrefixStore | None:
    """The rendezvous' store for this attempt of the job; None if it cannot be reached."""
    env = os.environ
    with suppress(KeyError, RuntimeError):
        timeout = timedelta(seconds=2)
        store = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), timeout=timeout)
        return PrefixStore(f"bench/{env.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    return None


def _report_failure(rank: int, message: str) -> None:
    """Store why this rank failed, unless another rank has reported a failure before."""
    with suppress(RuntimeError):
        if store := _store():
            store.compare_set("failed", "", json.dumps([rank, message]))


def _first_failure() -> tuple[int, str] | None:
    """The first rank that reported a failure, and its message; None without a report."""
    with suppress(RuntimeError):
        store = _store()
        if store and store.check(["failed"]):
            rank, message = json.loads(store.get("failed"))
            return rank, message
    return None
