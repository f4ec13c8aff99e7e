"""Pools of processes that end when the process that started them ends, by whatever signal."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Literal


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
