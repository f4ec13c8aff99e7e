"""Values of the keys of a ``config.json``; those of another type are refused."""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as shortened
from typing import Any


def integer(file: Path, given: dict[str, Any], key: str) -> int:
    """Return a key's whole number."""
    value = given.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise refusal(file, key, value, "a whole number")
    return value


def number(file: Path, given: dict[str, Any], key: str, default: float | None) -> float:
    """Return a key's finite number, or the default if the key is missing."""
    value = given.get(key, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) < 1e300:  # also refuses NaN
        raise refusal(file, key, value, "a number")
    return float(value)


def boolean(file: Path, given: dict[str, Any], key: str) -> bool:
    """Return a key's switch; false if the key is missing."""
    value = given.get(key, False)
    if not isinstance(value, bool):
        raise refusal(file, key, value, "true or false")
    return value


def refusal(file: Path, key: str, value: Any, valid: str) -> ValueError:
    """Return the error that names a key's value and what is valid."""
    return ValueError(f"{file}: {key} is {shortened(value)}; valid: {valid}")
