"""A started computation, whose result is waited for later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Pending:
    """The return value of every function `start_…`.

    Attributes:
        wait: Waits for the end and returns the result; to be called once.
    """

    wait: Callable[[], Tensor]
