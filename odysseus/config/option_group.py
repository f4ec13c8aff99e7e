"""Base class of option groups: fields declare bounds, and a method checks them.

The flags and YAML keys are generated from the fields of the groups, their types and docstrings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from reprlib import repr as shortened
from typing import Any


def bounded(least: int, most: int = 2**20, *, default: int) -> Any:
    """Declare a field with a least and a most value, which :meth:`OptionGroup.check` enforces."""
    return field(default=default, metadata={"bounds": (least, most)})


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """Base class of a group of options."""

    def check(self) -> None:
        """Raise ValueError, naming the value and the bound, if a field is out of its bounds."""
        for f in fields(self):
            if bounds := f.metadata.get("bounds"):
                (least, most), value = bounds, getattr(self, f.name)
                if value < least:
                    raise ValueError(f"{f.name} is {value}; it must be at least {least}")
                if value > most:
                    raise ValueError(f"{f.name} is {shortened(value)}; it must be at most {most}")


def groups_of(config: type) -> Iterator[tuple[type, list[Field[Any]]]]:
    """Yield a configuration's class and each of its groups, with the fields that it declares.

    This is the order of ``--help``, and of the keys of a sweep.
    """
    for group in (config, *config.__bases__):
        if own := [f for f in fields(group) if f.name in group.__annotations__]:
            yield group, own


def ordered_fields(config: type) -> list[Field[Any]]:
    """Return all fields of a configuration, in the order of :func:`groups_of`."""
    return [f for _, own in groups_of(config) for f in own]


def flags_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (flag, value) of every field; a field of a nested group has a dotted flag."""
    for f in ordered_fields(type(config)):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from flags_of(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value
