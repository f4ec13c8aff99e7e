"""Wait for signals as for data: no exception interrupts whatever line happens to run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


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
