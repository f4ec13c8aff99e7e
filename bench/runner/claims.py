"""Claims on cells, so that two sweeps on one file of rows measure each cell once."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

Key = tuple[str, ...]


@contextmanager
def claimed(path: Path, cells: Sequence[Key], wait: bool = False) -> Iterator[set[Key]]:
    """Claim cells of a file for this process; yield those that no other process has claimed.

    Args:
        wait: Whether to wait until no other process claims them.

    The claims end with the context, or with the process. They are locks on single bytes of a file
    beside the rows; which byte follows from the cell's :func:`bench.rows.key`. A process must hold
    one such context at a time: to close the file anywhere would end all its locks.
    """
    with path.with_name(f".{path.name}.cells").open("w") as file:
        yield {cell for cell in cells if _claim(file, cell, wait)}


def _claim(file: TextIO, cell: Key, wait: bool) -> bool:
    digest = hashlib.sha256("\0".join(cell).encode()).digest()
    place = int.from_bytes(digest[:7], "big")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
    except BlockingIOError:
        return False
    return True
