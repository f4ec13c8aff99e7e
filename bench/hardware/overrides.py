"""Overridden fields of a hardware profile: ``h100-80g(network_bytes_per_s=1.25e+10)``.

A label is a profile's name or file and, in brackets, the fields that differ from it, like the label
of a model. Fields of the speeds have their own names, without ``speeds.``. This module does not
import torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from math import inf, nan
from reprlib import repr as shortened
from typing import Any

from bench.hardware.profiles import Hardware
from bench.hardware.speeds import Attention, Link, Speeds
from odysseus.config.groups import DTYPES

CHOICES = {"device": ("cuda", "cpu"), "dtype": ("", *DTYPES)}
"""The values of the fields that are texts."""
_NODE = {f.name: f.type for f in fields(Hardware) if f.name != "speeds"}
_SPEEDS = {f.name: f.type for f in fields(Speeds)}
FIELDS = (*_NODE, *_SPEEDS)
"""The fields that can be overridden, in the order of a label."""
_MAY_BE_ZERO = ("hooks_s",)
_LABEL = re.compile(r"(.*?)\((\w+=[^()]*)\)", re.DOTALL)


def split(label: str) -> tuple[str, dict[str, str]]:
    """Return the profile's name in a label, and the text of each overridden field."""
    matched = _LABEL.fullmatch(label)
    if matched is None:
        return label, {}
    parts = (part.partition("=") for part in matched[2].split(","))
    return matched[1], {field.strip(): value.strip() for field, _, value in parts}


def join(name: str, changed: Mapping[str, Any]) -> str:
    """Return the label of a profile with overridden fields, each value in one spelling.

    Args:
        changed: Numbers or texts by field.

    Raises:
        ValueError: a field is unknown, or its value is out of range.
    """
    values = _values(changed)
    parts = ", ".join(f"{field}={_text(values[field])}" for field in FIELDS if field in values)
    return f"{name}({parts})" if parts else name


def applied(profile: Hardware, changed: Mapping[str, Any]) -> Hardware:
    """Return the profile with overridden fields. A number in place of a curve is a constant curve.

    For `matmul` it is the rate of all shapes, for `attention` that of every kernel, forward and
    backward, and for `links` the bus bandwidth of all collectives within a node.

    Raises:
        ValueError: a field is unknown, its value is out of range, or it is one of speeds that the
            profile does not have.
    """
    values = _values(changed)
    node = {field: value for field, value in values.items() if field in _NODE}
    rates = {field: value for field, value in values.items() if field in _SPEEDS}
    if not rates:
        return replace(profile, **node)
    if profile.speeds is None:
        raise ValueError(
            f"hardware.{next(iter(rates))} changes speeds, and the profile has none; valid: a "
            f"profile with speeds, or {', '.join(_NODE)}"
        )
    curves = {field: _constant(field, value, profile.speeds) for field, value in rates.items()}
    return replace(profile, **node, speeds=replace(profile.speeds, **curves))


def among(label: str, known: Mapping[str, Hardware]) -> Hardware | None:
    """Return the profile of a label of any origin; None if it is none of the known ones, with
    fields overridden or not.

    Args:
        known: Profiles by name or file.
    """
    by_path = {os.path.abspath(known_name): profile for known_name, profile in known.items()}
    if profile := by_path.get(os.path.abspath(label)):
        return profile
    name, changed = split(label)
    profile = by_path.get(os.path.abspath(name))
    try:
        return applied(profile, changed) if profile else None
    except ValueError:
        return None


def check_known(field: str) -> None:
    """Raise ValueError unless a profile has this field."""
    if field not in FIELDS:
        raise ValueError(
            f"hardware.{field} is no field of a hardware profile; valid: {', '.join(FIELDS)}"
        )


def _values(changed: Mapping[str, Any]) -> dict[str, Any]:
    return {field: _value(field, given) for field, given in changed.items()}


def _value(field: str, given: Any) -> int | float | str:
    """Return a field's value from a number or its text.

    Raises:
        ValueError: the field is unknown, or the value is out of range.
    """
    check_known(field)
    is_whole = (_NODE | _SPEEDS)[field] == "int"
    if field in CHOICES:
        valid = ", ".join(choice or "''" for choice in CHOICES[field])
        value = given if given in CHOICES[field] else None
    elif is_whole:
        valid, number = "a whole number from 0 to 2^63", _number(given)
        value = int(number) if 0 <= number < 2**63 and number == int(number) else None
    else:
        least = "0 or more" if field in _MAY_BE_ZERO else "above 0"
        valid, number = f"a finite number, {least}", _number(given)
        in_range = 0 < number < inf or (number == 0 and field in _MAY_BE_ZERO)
        value = float(number) if in_range else None
    if value is None:
        raise ValueError(f"hardware.{field} = {shortened(given)}; valid: {valid}")
    return value


def _number(given: Any) -> int | float:
    """Return a number, whole where it is written so; NaN if it is none."""
    for kind in (int, float):
        with suppress(ValueError, OverflowError):
            return kind(str(given))  # "True" is no number
    return nan


def _text(value: float | str) -> str:
    """Return the shortest text of a value; a number is read back from it exactly."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if isinstance(value, str) or float(short) == value else repr(value)


def _constant(field: str, value: Any, speeds: Speeds) -> Any:
    """Return a number as the value of one field of speeds."""
    points = ((1.0, value),)
    if field == "matmul":
        return ((1.0, 1.0, 1.0, value),)
    if field == "attention":
        return dict.fromkeys(speeds.attention, Attention(forward=points, backward=points))
    if field == "links":
        return (Link(points=points), *(link for link in speeds.links if link.nodes > 1))
    return points if _SPEEDS[field] == "Points" else value
