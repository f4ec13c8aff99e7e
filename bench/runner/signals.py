"""Signals that end this process, and the last acts before its end.

A process waits for signals as for data: no exception interrupts whatever line happens to run.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from odysseus.io import files

_acts: list[Callable[[], object]] = []
"""Functions to call before this process ends."""


@contextmanager
def before_end(act: Callable[[], object]) -> Iterator[None]:
    """A context that calls `act` if an exception leaves it, or :func:`end` ends the process
    inside."""
    _acts.append(act)
    try:
        yield
    except BaseException:
        act()
        raise
    finally:
        _acts.remove(act)


def end(number: int) -> NoReturn:
    """End this process for a signal, without an exception, which whatever runs now might swallow.

    Drafts of files are removed.
    """
    for act in reversed(_acts):
        with suppress(Exception):
            act()
    files.remove_drafts()
    os._exit(128 + number)


@contextmanager
def received_signals(*numbers: signal.Signals) -> Iterator[int]:
    """Yield a file descriptor from which one byte can be read per signal that came: its number.

    Afterwards all handlers are as before, and the descriptor is closed. Call it in the main thread,
    as Python's signal module requires.
    """
    received, signalled = os.pipe()
    os.set_blocking(signalled, False)
    previous_descriptor = signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_descriptor)
        os.close(signalled)
        os.close(received)
