"""Fold ``--hardware.FIELD VALUE``, and a section ``hardware`` in YAML, into the one text of
``--hardware``, a label of bench/hardware/overrides.py.

The section has the profile as ``name`` and overridden fields beside it. A later name replaces an
earlier one, a later field the same field; as for every option, flags win over files.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from bench import safe_yaml
from bench.config import yaml_text
from bench.hardware import overrides

_FLAG = "--hardware"
_FIELD = "--hardware."


def fold(arguments: Sequence[str], default: str) -> list[str]:
    """Return the arguments with the hardware as one flag, if any of them overrides a field.

    In a grid the profile and each field may be a list; the profile varies slowest.

    Args:
        arguments: Arguments of a verb, files first.
        default: The verb's own profile; empty if it has none.

    Raises:
        ValueError: a field is unknown, out of range or has no value, or there is no profile.
    """
    kept: list[str] = []
    names: Any = default
    changed: dict[str, Any] = {}
    is_plain = True
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", _FLAG) and not flag.startswith(_FIELD):
            kept.append(argument)
            continue
        texts = [argument] if equals else [argument, *itertools.islice(rest, 1)]
        values = _values(flag, value if equals else "".join(texts[1:]))
        if flag == "--config":
            kept += texts
        else:
            is_plain &= flag == _FLAG and not isinstance(_loaded(texts[-1]), dict)
        names = values.pop("name", names)
        changed |= values
    listed = names if isinstance(names, list) else [names]
    has_labels = any(overrides.split(str(name))[1] for name in listed)
    if is_plain and not changed and not has_labels:
        return list(arguments)
    labels = [label for name in listed for label in _labels(str(name), changed)]
    return [*kept, f"{_FLAG}={labels[0] if len(labels) == 1 else json.dumps(labels)}"]


def _values(flag: str, text: str) -> dict[str, Any]:
    """Return the profile, as ``name``, and the fields that an argument gives."""
    if flag == "--config":
        return _content(text)
    if flag == _FLAG:
        loaded = _loaded(text)
        return loaded if isinstance(loaded, dict) else {"name": loaded}
    field = flag.removeprefix(_FIELD)
    if field != "name":
        overrides.check_known(field)
    if not text or text.startswith("--"):
        raise ValueError(f"hardware.{field} is empty; valid: a value, or leave the flag out")
    return {field: _loaded(text)}


def _content(file: str) -> dict[str, Any]:
    """Return what a YAML file gives, in a section or by dotted keys."""
    values: dict[str, Any] = {}
    with suppress(ValueError):  # whoever reads the other options of the file says what is wrong
        content = safe_yaml.read(Path(file))
        for key, value in (content if isinstance(content, dict) else {}).items():
            if key == "hardware":
                values |= value if isinstance(value, dict) else {"name": value}
            elif str(key).startswith("hardware."):
                values[str(key).removeprefix("hardware.")] = value
    return values


def _loaded(text: str) -> Any:
    """Return a list or a section if a text is one in YAML, else the text."""
    with suppress(yaml.YAMLError, ValueError):  # a date may be none
        loaded = yaml_text.load(text)
        return loaded if isinstance(loaded, list | dict) else text
    return text


def _labels(name: str, changed: Mapping[str, Any]) -> Iterator[str]:
    """Yield the label of one profile, for every combination of the fields' values."""
    base, own = overrides.split(name)
    fields = {**own, **changed}
    if fields and not base:
        raise ValueError(
            f"hardware.{next(iter(fields))} overrides a field of no profile; valid: beside "
            "hardware = NAME"
        )
    axes = [value if isinstance(value, list) else [value] for value in fields.values()]
    for values in itertools.product(*axes):
        yield overrides.join(base, dict(zip(fields, values, strict=True)))
