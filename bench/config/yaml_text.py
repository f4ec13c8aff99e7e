"""Read YAML that anybody may have written: bounded in size, depth and aliases, sections may be
empty."""

from __future__ import annotations

import os
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

MODE = "options"
"""Name under which jsonargparse knows :func:`load`."""
_MOST_BYTES, _MOST_DEPTH = 2**20, 50
_SECTIONS = ("model", "optimizer", "data")
_load = get_loader("yaml")


class UnboundedError(yaml.YAMLError):
    """YAML that is too deep, or whose aliases could grow without bound."""


def check_file(option: str, name: str) -> None:
    """Raise ValueError unless a name is that of a YAML file that can be loaded."""
    path = Path(name)
    try:
        if not path.exists():
            reason = "there is no such file"
        elif not path.is_file():
            reason = "it is no regular file"
        elif path.stat().st_size > _MOST_BYTES:
            reason = f"it has more than {_MOST_BYTES} bytes"
        else:
            text = path.read_text(encoding="utf-8")
            check(text)
            reason = _wrong_content(yaml.safe_load(text))
            if not reason:
                return
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "")
    raise ValueError(
        f"{option} = {name!r}: {reason}; valid: a YAML file, or the name of one that comes with "
        "the package"
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


def check(text: str) -> None:
    """Raise yaml.YAMLError unless a text is YAML, not deeper than 50 levels, and no alias stands
    inside a value that has an anchor, so that aliases cannot multiply."""
    anchors: list[bool] = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) and any(anchors):
            raise UnboundedError("an alias stands inside a value that has an anchor")
        if isinstance(event, yaml.CollectionStartEvent):
            anchors.append(event.anchor is not None)
            if len(anchors) > _MOST_DEPTH:
                raise UnboundedError(f"it is nested more than {_MOST_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchors.pop()


def load(text: str) -> Any:
    """Load YAML as jsonargparse does. A section without keys is as good as none."""
    if len(text) > _MOST_DEPTH:
        check(text)
    value = _load(text)
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if v is not None or k not in _SECTIONS}
    return value


set_loader(MODE, load, (yaml.YAMLError,))
