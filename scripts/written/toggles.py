"""docs/toggles.md, written from the fields of the configuration, their types and docstrings.

python -m scripts.written.toggles
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse

from odysseus.config.run import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "toggles.md"
_TOP = """# Every toggle

<!-- Written by `python -m scripts.written.toggles`. -->

A toggle is a field of `RunConfig` (`odysseus/config/run.py`): a flag of `run`, `sweep`, `verify`
and `plan`, and a key of their YAML files, dots being nesting. In a sweep each may hold a list. What
the memory tricks save and cost is in [memory tricks](tricks.md), what becomes of a toggle in a row
in [columns](columns.md).
"""
# Title of a section by its first field.
_SECTIONS = {
    "method": "Method and ranks",
    "seq_len": "One step",
    "dtype": "Numbers and reductions",
    "activation_checkpointing": "Memory",
    "regather": "Variants of a method",
    "parameter_offload": "Offload and compilation",
    "steps": "How a cell runs",
    "dry_run": "Dry run",
    "model.name_or_path": "Model",
    "optimizer.type": "Optimizer",
    "data.path": "Text",
}


def rows(config: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, its line of the table) of every field; those of nested groups follow all others."""
    meanings = {p.arg_name: p.description or "" for p in parse(config.__doc__ or "").params}
    hints = get_type_hints(config)
    groups = [f.name for f in fields(config) if is_dataclass(hints[f.name])]
    for f in fields(config):
        if f.name in groups:
            continue
        meaning = " ".join(meanings[f.name].split()).replace("|", r"\|")
        values = ", ".join(dict.fromkeys(_values(hints[f.name])))
        name = f"{prefix}{f.name}"
        yield name, f"| `--{name}` | {values} | {_default(f.default)} | {meaning} |"
    for name in groups:
        yield from rows(hints[name], f"{prefix}{name}.")


def _values(hint: Any) -> Iterator[str]:
    """What a field takes, as it is written."""
    if get_origin(hint) is Literal:
        yield from (f"`{value}`" for value in get_args(hint))
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from _values(part)
    elif hint is bool:
        yield from ("`true`", "`false`")
    elif hint is not NoneType:
        yield {int: "an integer", float: "a number", str: "text"}[hint]


def _default(value: Any) -> str:
    if value is None:
        return "the model's"
    if value == "":
        return "empty"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def page() -> str:
    """The whole page."""
    lines = [_TOP]
    for name, row in rows(RunConfig):
        if name in _SECTIONS:
            lines += ["", f"## {_SECTIONS[name]}", ""]
            lines += ["| flag | values | default | meaning |", "| --- | --- | --- | --- |"]
        lines.append(row)
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
