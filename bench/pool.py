"""Pools of processes that end when the process that started them ends, by whatever signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

may_fork = False
"""Whether this process runs no thread, so that processes may be forked from it."""


class Here(Executor):
    """Executor that computes in this process, before :meth:`submit` returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return the future of a call that has ended."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@contextmanager
def workers() -> Iterator[Executor]:
    """Yield an executor on all cores: processes forked now, which need not import anything again.

    It computes in this process where that may not be forked or has one core. At the end of the
    context, calls that have not begun are dropped.
    """
    if not may_fork or os.cpu_count() == 1:
        yield Here()
        return
    with pool("fork") as processes:
        processes.submit(int).result()  # forks them all, before there are threads
        try:
            yield processes
        finally:
            processes.shutdown(cancel_futures=True)


def waiting(executor: Executor, calls: int) -> Executor:
    """Return an executor for calls that wait for those of another one: threads, so that these many
    wait at once; or this process, where that computes everything."""
    return Here() if isinstance(executor, Here) else ThreadPoolExecutor(calls)


def as_done(
    executor: Executor, function: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[tuple[int, Any]]:
    """Yield each item's number and the function's result for it, as soon as that is known."""
    if isinstance(executor, Here):
        yield from ((number, function(item)) for number, item in enumerate(items))
        return
    numbers = {executor.submit(function, item): number for number, item in enumerate(items)}
    for call in as_completed(numbers):
        yield numbers[call], call.result()


def pool(start: Literal["fork", "spawn"]) -> ProcessPoolExecutor:
    """Return a pool with a process for each core.

    Args:
        start: How its processes start, see :mod:`multiprocessing`. (A fork server would leave its
            temporary folder where it is when this process is killed.)

    Raises:
        OSError: the current folder is gone, in which a new process starts.
    """
    Path.cwd()
    return ProcessPoolExecutor(os.cpu_count(), get_context(start), initializer=_end_with_parent)


def one_new(prepare: Callable[[], object] | None = None) -> ProcessPoolExecutor:
    """Return a pool of one new process, in which little has been imported.

    Args:
        prepare: Called there before anything else is imported.
    """
    return ProcessPoolExecutor(
        1, get_context("spawn"), initializer=_prepare, initargs=(prepare or int,)
    )


def _prepare(prepare: Callable[[], object]) -> None:
    _end_with_parent()
    prepare()


def _end_with_parent() -> None:
    """Let this process be killed when its parent ends, and by SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends, and this process with it
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a pool's process has a parent"
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
