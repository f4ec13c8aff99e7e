"""Hardware profiles as YAML with a comment on every field: its meaning, unit and source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from math import inf
from typing import Any

import yaml
from docstring_parser import parse

from bench.hardware import overrides, profile_file
from bench.hardware.profiles import PROFILES, Hardware
from bench.hardware.sources import source
from bench.hardware.speeds import Speeds

FROM_FILE = "as in its file"
"""Origin of a field of a user's own profile."""
_OVERRIDDEN = "overridden in its name"


def meanings(group: type) -> dict[str, str]:
    """Return the meaning of each field of a dataclass, from its docstring, in one line."""
    documented = {p.arg_name: p.description or "" for p in parse(group.__doc__ or "").params}
    return {f.name: " ".join(documented[f.name].split()).rstrip(".") for f in fields(group)}


def text(name: str) -> str:
    """Return the profile of this name as YAML, with a comment on every field.

    The text, saved in a file, is read as an equal profile.

    Raises:
        ValueError: there is no such profile, see :func:`bench.hardware.profile_file.find`.
    """
    profile = profile_file.find(name)
    base, changed = overrides.split(name)

    def origin(field: str) -> str:
        if field in changed:
            return _OVERRIDDEN
        return source(base, field) if base in PROFILES else FROM_FILE

    lines = [
        f"# {name}; saved in a file, --hardware FILE.yml reads it",
        *_lines(Hardware, asdict(profile), origin),
    ]
    if profile.speeds:
        lines += [f"  {line}" for line in _lines(Speeds, asdict(profile.speeds), origin)]
    return "\n".join(lines) + "\n"


def _lines(group: type, values: dict[str, Any], origin: Callable[[str], str]) -> list[str]:
    """Return the lines of one group of fields, without those inside `speeds`."""
    lines = []
    for field, meaning in meanings(group).items():
        rests_on = "" if values[field] in ("", (), None, 0) else origin(field)
        lines.append(f"# {meaning}{f'; {rests_on}' if rests_on else ''}")
        lines += _yaml(field, values[field])
    return lines


def _yaml(field: str, value: Any) -> list[str]:
    """Return the lines of one field; its fields have lines of their own if it is `speeds`."""
    if field == "speeds" and value is not None:
        return ["speeds:"]
    flow = None if isinstance(value, dict | tuple) else False  # innermost lists in one line
    plain = profile_file.plain({field: value})
    return yaml.safe_dump(plain, default_flow_style=flow, sort_keys=False, width=inf).splitlines()
