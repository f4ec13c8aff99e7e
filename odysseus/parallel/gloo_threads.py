"""Wait for gloo's threads, which hold a collective's tensors until a moment after it is done."""

from __future__ import annotations

import atexit
import os
import time
from contextlib import suppress
from functools import cache
from threading import get_native_id


def settle() -> None:
    """Wait until no other thread of this process runs.

    It may take long where cores are shared. The wait ends after 0.2 s, as a thread may spin.
    """
    time.sleep(2e-4)
    for _ in range(200):
        if not _other_threads_run():
            return
        time.sleep(1e-3)


@cache
def settle_at_exit() -> None:
    """Let this process's interpreter end only after :func:`settle`.

    A thread that lets go of a tensor when the interpreter has ended aborts the process ("terminate
    called without an active exception"; pytorch#179291). Ending the process group does not end the
    threads while anything refers to a group of it.
    """
    atexit.register(settle)


def _other_threads_run() -> bool:
    """Whether another thread of this process runs, could run or waits in the kernel.

    These are the states R and D of proc(5); D is a wait for the lock of the address space, say.
    """
    for task in os.scandir("/proc/self/task"):
        # A thread may have ended. Unbuffered reads are the fastest; there are dozens of threads.
        with suppress(OSError), open(f"{task.path}/stat", "rb", buffering=0) as file:
            state = file.read().rpartition(b")")[2].split()[0]
            if state in (b"R", b"D") and int(task.name) != get_native_id():
                return True
    return False
