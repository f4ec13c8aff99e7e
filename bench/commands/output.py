"""Standard output that may fail: a reader that leaves early, as in ``report … | head``; a full
disk."""

from __future__ import annotations

import io
import os
from typing import TextIO


class WhileRead(io.TextIOBase):
    """A stream that drops everything once it cannot be written to.

    The command goes on: its files are what it is for.

    Args:
        stream: The stream to write to.

    Attributes:
        failure: Why text was dropped, unless the reader had closed the pipe.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None

    def write(self, text: str, /) -> int:
        """Write to the stream, or drop the text."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop what it holds."""
        try:
            self.stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Drop what has not been written and all that follows."""
        if not isinstance(error, BrokenPipeError):
            self.failure = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def fileno(self) -> int:
        """The stream's file descriptor."""
        return self.stream.fileno()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream.isatty()
