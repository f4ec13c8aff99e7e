"""Write files so that nothing old is lost: first a draft beside the file, then a rename.

This module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_drafts: set[Path] = set()
"""Drafts that this process is writing."""


class NotSaved(Exception):
    """A result could not be written to its file; the message has the reason and the result."""


def check_output(
    option: str, path: Path, valid: str, foreign: Callable[[Path], str] | None = None
) -> None:
    """Check before anything starts that a file can be written, and that no other file is lost.

    Creates the file's folder. A file that exists must be empty or of the kind that will be written.

    Args:
        option: Name of the option that names the file.
        valid: What the file may be, apart from a new one.
        foreign: Returns why a file that exists is of another kind, empty if it is not. Without it,
            no file of any content may exist.

    Raises:
        ValueError: the file cannot be written, or is of another kind.
    """
    name = str(path)
    name = name if name.isprintable() else ascii(name)
    try:
        str(path).encode()
        if not path.name:
            raise ValueError("it names no file")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(path)
        draft.touch()
        draft.unlink()
        reason = _reason(path, foreign)
    except UnicodeEncodeError:
        reason = "its name is not UTF-8"
    except FileExistsError:
        reason = "it cannot be written: its folder is a file"
    except OSError as error:
        reason = f"it cannot be written: {error.strerror}"
    except ValueError as error:  # no name, a null byte in it, or from `foreign`
        reason = str(error)
    if reason:
        raise ValueError(f"{option} = {name}: {reason}; valid: {valid}")


def _reason(path: Path, foreign: Callable[[Path], str] | None) -> str:
    """Why a path must not be written to; empty if it may be."""
    if not path.exists():
        return ""
    if not path.is_file():
        return "it cannot be written: it is no regular file"
    if not os.access(path, os.W_OK):
        return "it cannot be written: Permission denied"
    if not path.stat().st_size:
        return ""
    return foreign(path) if foreign else "it exists already"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a draft beside the file, which replaces the file afterwards.

    If an exception is raised meanwhile, the draft is removed and the file stays as it was. The
    draft has the file's suffix. Its content is on the disk before it gets the file's name.

    Raises:
        OSError: the file cannot be written.
    """
    path = path.resolve()  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(path)
    _drafts.add(draft)
    try:
        yield draft
        with draft.open("rb+") as written:
            os.fsync(written.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
        _drafts.discard(draft)


def remove_drafts() -> None:
    """Remove the drafts of this process, which is about to end without an exception."""
    for draft in tuple(_drafts):
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Write a text as UTF-8, or bytes, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def not_saved(path: Path, text: str, error: Exception) -> NotSaved:
    """The exception for a result that could not be written; keeps it in FILE.unsaved if it can.

    Args:
        text: The result.
        error: Why it could not be written.
    """
    reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
    message = f"{path} could not be written: {reason}"
    kept = path.with_name(f"{path.name}.unsaved")
    with suppress(OSError):
        with kept.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
        message += f"; the result is in {kept}, and here"
    return NotSaved(f"{message}:\n{text}")


def _draft(path: Path) -> Path:
    return path.with_name(f".{os.getpid()}.{path.name}")
