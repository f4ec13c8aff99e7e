"""Write docs/toggles.md from the fields of the configuration, their types and docstrings.

python -m scripts.written.toggles
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse

from odysseus.config.option_group import groups_of
from odysseus.config.run import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "toggles.md"
_TOP = """# Every toggle

<!-- Written by `python -m scripts.written.toggles`. -->

A toggle is a field of `RunConfig` (`odysseus/config/`): a flag of `run`, `sweep`, `verify` and
`plan`, and a key of their YAML files, in which a dot is nesting. In a sweep each may hold a list.
[Memory tricks](tricks.md) says what each saves and costs; [columns](columns.md) says which columns
of a row hold a toggle.
"""


def sections(config: type, prefix: str = "") -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield each group of options: its title, and (name, its line of the table) of every field."""
    hints = get_type_hints(config)
    for group, own in groups_of(config):
        documented = parse(group.__doc__ or "")
        meanings = {p.arg_name: p.description or "" for p in documented.params}
        nested = [f.name for f in own if is_dataclass(hints[f.name])]
        lines = []
        for f in own:
            if f.name not in nested:
                meaning = " ".join(meanings[f.name].split()).replace("|", r"\|")
                values = ", ".join(dict.fromkeys(_values(hints[f.name])))
                cells = f"| `--{prefix}{f.name}` | {values} | {_default(f.default)} | {meaning} |"
                lines.append((f"{prefix}{f.name}", cells))
        yield (documented.short_description or "").partition(". ")[0].rstrip("."), lines
        for name in nested:
            yield from sections(hints[name], f"{prefix}{name}.")


def _values(hint: Any) -> Iterator[str]:
    """Yield the values that a field may hold, as a person writes them."""
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
    for title, rows in sections(RunConfig):
        lines += ["", f"## {title}", ""]
        lines += ["| flag | values | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [row for _, row in rows]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
