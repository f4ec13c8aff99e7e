"""Claims on cells, so that two sweeps on one file of rows measure each cell once."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claimed(path: Path, cell: tuple[str, ...], wait: bool = False) -> Iterator[bool]:
    """Claim a cell of a file for this process; yield False if another process has claimed it.

    Args:
        wait: Whether to wait until no other process claims it.

    The claim ends with the context, or with the process. It is a lock on one byte of a file beside
    the rows; which byte follows from the cell's :func:`bench.rows.key`.
    """
    digest = hashlib.sha256("\0".join(cell).encode()).digest()
    place = int.from_bytes(digest[:7], "big")
    with path.with_name(f".{path.name}.cells").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
        except BlockingIOError:
            yield False
        else:
            yield True
