"""Numbers in environment variables, as torchrun and srun set them."""

from __future__ import annotations

import os
from reprlib import repr as shortened

_DIGITS = 18


def whole_number(name: str, least: int = 0) -> int | None:
    """Return the number in an environment variable; None if the variable is not set.

    Raises:
        ValueError: it is not a whole number of at least `least`; the message names the variable.
    """
    text = os.environ.get(name)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) >= least:
        return int(text)
    raise ValueError(
        f"environment variable {name} is {shortened(text)}; valid: a whole number, at least {least}"
    )
