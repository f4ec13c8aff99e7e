"""The command line's entry point, with a tripwire where ranks or long computations would start."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from unittest.mock import patch

from bench.__main__ import main
from bench.commands import flags, plan_map
from bench.report import catalogue
from bench.runner import join, processes, worker
from bench.scripted import library, world
from bench.simulator import dry_run

SECONDS = 30
"""Longest time of a command until it ends or would start ranks."""
MEMORY_BYTES = 3 * 10**9
"""Most resident memory of the process."""
LINE = 2_000
"""Longest line that a refusal may print: a few values of 200 characters, and what is valid."""
NOTE = " is an ArcticTraining recipe; ignored: "
"""Part of the note on a recipe, which may come before a refusal."""
_PARSERS = {verb: cache(parser) for verb, parser in flags.PARSERS.items()}


class Started(BaseException):
    """Raised in place of starting ranks or counting a dry run."""


class Hung(BaseException):
    """Raised when a command has taken too long."""


@dataclass(frozen=True)
class Ended:
    """The end of a command.

    Attributes:
        status: Its exit status; None if it would have started.
    """

    status: int | None
    out: str
    err: str
    seconds: float


def enter(*arguments: str, counts: bool = False) -> Ended:
    """Run a command in this process and in the current folder.

    Args:
        counts: Whether dry runs are counted, which takes as long as the model is deep.

    Raises:
        Hung: it took longer than SECONDS.
        BaseException: whatever the command raises; a user would see its traceback.
    """
    out, err = io.StringIO(), io.StringIO()
    status: int | None = None
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(patch.object(flags, "PARSERS", _PARSERS))
        for module, name in _tripwires(counts):
            stack.enter_context(patch.object(module, name, _started))
        stack.enter_context(_alarm())
        try:
            status = main([*arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        except Started:
            pass
        finally:
            gc.unfreeze()  # a report freezes what it has imported
    return Ended(status, out.getvalue(), err.getvalue(), time.monotonic() - begin)


def _tripwires(counts: bool) -> Iterator[tuple[Any, str]]:
    yield from ((processes, "run_ranks"), (processes, "fork_now"))
    yield from ((join, "run_cell"), (worker, "process_group"))
    yield from ((plan_map, "workers"), (catalogue, "pool"))
    yield from ((library, "load"), (world, "only_rank"))
    if not counts:
        yield from ((dry_run, "count"), (dry_run, "counted"))


def _started(*_: object, **__: object) -> NoReturn:
    raise Started


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def hung(_: int, frame: FrameType | None) -> NoReturn:
        raise Hung(f"after {SECONDS} s at {frame}")

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check(ended: Ended) -> None:
    """Fail unless a command started, ended well, or said in one line why not."""
    assert ended.status in (None, 0, 1, 2), ended
    assert "Traceback" not in ended.err, ended
    if ended.status == 2:
        assert ended.out == "", ended
        (line,) = (line for line in ended.err.splitlines() if NOTE not in line)
        assert line.startswith("python -m bench "), ended
        assert len(line) <= LINE, line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MEMORY_BYTES


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file in a folder, by its name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
