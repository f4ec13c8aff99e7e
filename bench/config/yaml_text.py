"""YAML of options, on the command line and in files; its sections may be empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from bench import safe_yaml

MODE = "options"
"""Name under which jsonargparse knows :func:`load`."""
_SECTIONS = ("model", "optimizer", "data")
_SHORT = 50
"""Characters of a text that cannot be unbounded."""
_load = get_loader("yaml")


def check_file(option: str, name: str) -> None:
    """Raise ValueError unless a name is that of a YAML file that can be loaded."""
    try:
        reason = _wrong_content(safe_yaml.read(Path(name)))
    except ValueError as error:
        reason = str(error)
    if reason:
        raise ValueError(
            f"{option} = {name!r}: {reason}; valid: a YAML file, or the name of one that comes "
            "with the package"
        )


def _wrong_content(content: Any) -> str:
    """Why a file's content is no set of options; empty if it may be one."""
    if not isinstance(content, dict):
        return "it holds no names of options with values"
    for key, value in content.items():
        if value is None and key not in _SECTIONS:
            return f"{key} is empty"
        if key in _SECTIONS and not isinstance(value, dict | NoneType):
            return f"{key} is {value!r}, and must hold names of options with values"
    return ""


def load(text: str) -> Any:
    """Load YAML as jsonargparse does. A section without keys is as good as none.

    Of the section `hardware` only the name of the profile is left: bench/config/hardware_flags.py
    reads its fields.
    """
    if len(text) > _SHORT:
        safe_yaml.check(text)
    value = _load(text)
    return dict(_options(value)) if isinstance(value, dict) else value


def _options(content: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the options in the content of a file."""
    for key, value in content.items():
        if key == "hardware" and isinstance(value, dict):
            if "name" in value:
                yield key, value["name"]
        elif not str(key).startswith("hardware.") and (value is not None or key not in _SECTIONS):
            yield key, value


set_loader(MODE, load, (yaml.YAMLError,))
