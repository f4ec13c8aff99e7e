"""The memory of one rank over a step as JSON: bytes by kind after some of its events.

An event is the allocation or the release of a storage. The file keeps the peaks: the most bytes of
its points are the step's peak to the byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.meters.memory import KINDS, Course
from odysseus.io import files

_BEGINNING = '{"memory_of": {'
"""Text by which such a file is known."""
_MOST_BYTES = 1e18
_MOST_POINTS = 10_000
"""Most points that are read; those that are written are far fewer."""


@dataclass(frozen=True)
class MemoryTrace:
    """The content of a file.

    Attributes:
        cell: Texts that identify the cell, by column of its row.
        course: Bytes over the step.
    """

    cell: Mapping[str, str]
    course: Course


def write(course: Course, path: Path, cell: Mapping[str, Any]) -> None:
    """Write a step's memory.

    Args:
        cell: The columns of the row that identify the cell.

    Raises:
        OSError: the file cannot be written.
    """
    texts = {name: "" if value is None else str(value) for name, value in cell.items()}
    content = {"memory_of": texts, "events": course.events, "at": course.at, "bytes": course.bytes}
    files.write(path, json.dumps(content))


def parsed(content: Any) -> MemoryTrace | None:
    """The trace in a JSON file's content; None if it is another kind of file or damaged."""
    try:
        cell = {str(name): str(text) for name, text in content["memory_of"].items()}
        of_kind = {kind: [int(size) for size in content["bytes"][kind]] for kind in KINDS}
        at, events = [int(number) for number in content["at"]], int(content["events"])
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return None
    numbers = [size for sizes in of_kind.values() for size in sizes]
    is_sound = (
        0 < len(at) <= _MOST_POINTS
        and all(len(sizes) == len(at) for sizes in of_kind.values())
        and all(0 <= size < _MOST_BYTES for size in numbers)
        and all(0 <= number <= events < _MOST_BYTES for number in at)
        and at == sorted(at)
    )
    return MemoryTrace(cell, Course(events, at, of_kind)) if is_sound else None


def check_writable(path: Path) -> None:
    """Raise ValueError unless a file can be written, over nothing but an earlier one."""

    def foreign(path: Path) -> str:
        with path.open("rb") as file:
            is_known = file.read(len(_BEGINNING)).decode(errors="replace") == _BEGINNING
        return "" if is_known else "it is no memory over a step"

    files.check_output("memory_trace", path, "a new file, or one that run wrote", foreign)
