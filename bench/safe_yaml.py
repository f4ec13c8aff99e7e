"""Read YAML that anybody may have written: bounded in size, depth, aliases and digits."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

_MOST_BYTES, _MOST_DEPTH, _MOST_DIGITS, _MOST_ITEMS = 2**20, 50, 300, 1000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's safe loader, in C where it was built with libyaml: ten times as fast."""
_NUMBER = re.compile(rf"[0-9_]{{{_MOST_DIGITS + 1},}}")


class UnboundedError(yaml.YAMLError):
    """YAML that is too deep, whose aliases could grow without bound, or with an endless number."""


def read(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        ValueError: there is no such file, or it is no bounded YAML; the message is the reason.
    """
    try:
        if not path.exists():
            raise ValueError("there is no such file")
        if not path.is_file():
            raise ValueError("it is no regular file")
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        check(text)
        return yaml.load(text, Loader=_LOADER)
    except OSError as error:
        raise ValueError(os.strerror(error.errno or 0)) from None
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(re.sub(r'in "<(unicode|byte) string>", ', "", reason)) from None


def check(text: str) -> None:
    """Raise yaml.YAMLError unless a text is bounded YAML.

    It is not deeper than 50 levels; no number has more than 300 digits and no list more than
    1,000 values, for which the command line's parser takes the square of their time; no alias
    stands inside a value that has an anchor, so that aliases cannot multiply.
    """
    anchors: list[bool] = []
    nodes = [0]
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent) and any(anchors):
            raise UnboundedError("an alias stands inside a value that has an anchor")
        if isinstance(event, yaml.NodeEvent):
            nodes[-1] += 1
            if nodes[-1] > _MOST_ITEMS:
                raise UnboundedError(f"a list has more than {_MOST_ITEMS} values")
        if isinstance(event, yaml.ScalarEvent) and _NUMBER.search(event.value):
            raise UnboundedError(f"a number has more than {_MOST_DIGITS} digits")
        if isinstance(event, yaml.CollectionStartEvent):
            anchors.append(event.anchor is not None)
            nodes.append(0)
            if len(anchors) > _MOST_DEPTH:
                raise UnboundedError(f"it is nested more than {_MOST_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchors.pop()
            nodes.pop()
