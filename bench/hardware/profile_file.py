"""Hardware profiles by name or from a YAML file: read, check and write.

This module does not import torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields
from math import inf
from pathlib import Path
from typing import Any

import yaml

from bench import safe_yaml
from bench.hardware import overrides
from bench.hardware.profiles import PROFILES, Hardware
from bench.hardware.speeds import Attention, Link, Points, Speeds
from bench.meters.kinds import COLLECTIVES
from odysseus.io import files

_RATES = {field.name for field in fields(Attention)}
_NUMBERS = {
    *("peak_flops_per_s", "issue_s", "hooks_s", "host_memory_bytes_per_s"),
    *("to_host_bytes_per_s", "to_device_bytes_per_s"),
}
_OLD_KEYS = {"gpus_a_node": "gpus_per_node"}
"""Keys that earlier versions wrote, by the keys of today; files with them are still read."""


def find(name: str, option: str = "hardware") -> Hardware:
    """Return a built-in profile by its name, or one from a YAML file, with overridden fields.

    Args:
        name: Name or file, and in brackets the fields that differ (bench/hardware/overrides.py).
        option: Name of the option that names the profile, for the message.

    Raises:
        ValueError: no profile has this name, the file lacks a field or has an unknown one, or an
            overridden field is unknown or out of range.
    """
    base, changed = overrides.split(name)
    profile = PROFILES.get(base) or _from_file(base, option)
    if not changed:
        return profile
    return _checked(f"{option} {name!r}", asdict(overrides.applied(profile, changed)))


def _from_file(name: str, option: str) -> Hardware:
    """Return the profile in a YAML file."""
    valid = f"{', '.join(PROFILES)}, or a YAML file"
    if not name.endswith((".yml", ".yaml")):
        raise ValueError(f"{option} is {name!r}; valid: {valid}")
    try:
        given = safe_yaml.read(Path(name))
    except ValueError as error:
        raise ValueError(f"{option} is {name!r}: {error}; valid: {valid}") from None
    return _checked(f"{option} {name!r}", given if isinstance(given, dict) else {})


def digest(name: str) -> str:
    """Return the first 12 digits of a profile file's SHA-256; empty if there is no file."""
    file, _ = overrides.split(name)
    if not file or file in PROFILES:
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]


def write(hardware: Hardware, path: Path) -> None:
    """Write a profile as a file that :func:`find` reads.

    Raises:
        NotSaved: the file cannot be written; the profile is kept.
    """
    write_text(as_yaml(asdict(hardware)), path)


def write_text(text: str, path: Path) -> None:
    """Write the YAML of a profile, see :func:`write`."""
    try:
        files.write(path, text)
    except OSError as error:
        raise files.not_saved(path, text, error) from None


def check_name(path: Path) -> None:
    """Raise ValueError unless a file's name is one of a profile."""
    if path.suffix not in (".yml", ".yaml"):
        raise ValueError(f"out = {path} is no profile name; valid: a name ending in .yml or .yaml")


def check_writable(path: Path) -> None:
    """Raise ValueError unless the file can be written, and is new or a profile."""

    def foreign(path: Path) -> str:
        try:
            find(str(path))
        except ValueError:
            return "it is no hardware profile"
        return ""

    files.check_output("out", path, "a new file, or a hardware profile", foreign)


def as_yaml(fields_of: dict[str, Any]) -> str:
    """Return a profile's fields as YAML."""
    return yaml.safe_dump(plain(fields_of), sort_keys=False)


def plain(value: Any) -> Any:
    """Return a value with lists in place of tuples, for YAML."""
    if isinstance(value, dict):
        return {key: plain(of) for key, of in value.items()}
    return [plain(of) for of in value] if isinstance(value, list | tuple) else value


def _checked(what: str, given: dict[str, Any]) -> Hardware:
    """Return the profile that a file's fields describe.

    Args:
        what: Option and file, for the message.

    Raises:
        ValueError: a field is missing, unknown or out of range.
    """
    given = {_OLD_KEYS.get(key, key): value for key, value in given.items()}
    names = {f.name for f in fields(Hardware)}
    needed = {f.name for f in fields(Hardware) if f.default is MISSING}
    for verb, wrong in (("lacks", needed - given.keys()), ("has unknown", given.keys() - names)):
        if wrong:
            listed = ", ".join(sorted(map(str, wrong)))
            raise ValueError(f"{what} {verb} {listed}; valid: {', '.join(sorted(names))}")
    whole = [key for key in given if key in needed or key.endswith("_bytes")]
    bad = [key for key in whole if type(given[key]) is not int or given[key] < 0]
    if bad:
        raise ValueError(f"{what}: {bad[0]} is {given[bad[0]]!r}; valid: whole bytes")
    if given["gpus_per_node"] < 1:
        raise ValueError(f"{what}: gpus_per_node is 0; valid: 1 and more")
    for key, valid in overrides.CHOICES.items():
        if given.get(key, valid[0]) not in valid:
            listed = ", ".join(v or "''" for v in valid)
            raise ValueError(f"{what}: {key} is {given[key]!r}; valid: {listed}")
    try:
        if known := given.pop("speeds", None):
            given["speeds"] = _speeds(known)
        profile = Hardware(**given)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{what}: speeds: {reason}; valid: as python -m bench calibrate writes them"
        ) from None
    if profile.usable_bytes <= 0:
        raise ValueError(
            f"{what}: memory_bytes is {profile.memory_bytes}; valid: more than the "
            f"{profile.memory_bytes - profile.usable_bytes} that context, nccl and workspace take"
        )
    return profile


def _speeds(given: dict[str, Any]) -> Speeds:
    """Speeds from plain lists and numbers.

    Raises:
        TypeError, ValueError, KeyError: a speed is missing, or is no list or number in range.
    """
    given = dict(given)
    given["matmul"] = tuple(_row(row, 4) for row in given["matmul"])
    given["attention"] = {
        name: Attention(
            forward=_points(a["forward"]),
            backward=_points(a["backward"]),
            whole_forward=_points(a["whole_forward"]) if a.get("whole_forward") else (),
            whole_backward=_points(a["whole_backward"]) if a.get("whole_backward") else (),
            rows_forward=_count("rows_forward", a.get("rows_forward", 0)),
            rows_backward=_count("rows_backward", a.get("rows_backward", 0)),
        )
        for name, a in _attentions(given["attention"])
    }
    given["memory"] = _points(given["memory"])
    for name in ("network_bytes_per_s", "silu", "skew"):
        given[name] = _points(given[name]) if given.get(name) else ()
    given["links"] = tuple(_link(link) for link in given.get("links", ()))
    if not given.get("hooks_s"):
        given.pop("hooks_s", None)
    for name in _NUMBERS & given.keys():
        given[name] = _row([given[name]], 1)[0]
    for name in ("multiprocessors", "collective_multiprocessors"):
        _count(name, given.get(name, 0))
    if 0 < given.get("multiprocessors", 0) <= given.get("collective_multiprocessors", 0):
        raise ValueError("collective_multiprocessors must be less than multiprocessors")
    if not given["matmul"] or not given["attention"]:
        raise ValueError("matmul and attention must have at least one rate")
    return Speeds(**given)


def _attentions(given: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, rates in given.items():
        if unknown := rates.keys() - _RATES:
            listed = ", ".join(sorted(map(str, unknown)))
            raise ValueError(f"{name} has unknown {listed}; valid: {', '.join(sorted(_RATES))}")
        yield name, rates


def _link(given: dict[str, Any]) -> Link:
    of_link: dict[str, Any] = given | {"points": _points(given["points"])}
    link = Link(**of_link)
    known = link.collective in ("", *COLLECTIVES)
    sizes = link.ranks, link.nodes, link.stride
    whole = all(type(size) is int for size in sizes)
    if not known or not whole or link.ranks < 0 or link.nodes < 1 or link.stride < 0:
        raise ValueError(
            f"a link of {link.collective!r}, {link.ranks!r} ranks, {link.nodes!r} nodes, stride "
            f"{link.stride!r} is none; valid: {', '.join(COLLECTIVES)} or '', 0 ranks or more, "
            "1 node or more, stride 0 or more"
        )
    return link


def _row(given: Any, length: int) -> tuple[Any, ...]:
    """Return the given numbers, checked: this many, finite and above 0."""
    numbers = tuple(float(x) for x in given)
    if len(numbers) != length or not all(0 < x < inf for x in numbers):
        raise ValueError(f"{given} must be {length} finite numbers above 0")
    return numbers


def _count(name: str, given: Any) -> int:
    """Return a whole number, checked."""
    if type(given) is not int or given < 0:
        raise ValueError(f"{name} is {given!r}; it must be a whole number")
    return given


def _points(given: Any) -> Points:
    points = tuple(_row(point, 2) for point in given)
    if not points or list(points) != sorted(points):
        raise ValueError(f"{given} is no curve: points (x, y), x ascending")
    return points
