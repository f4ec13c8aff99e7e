"""Write docs/toggles.md from the fields of the configuration, their types and docstrings.

python -m scripts.written.toggles
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

from docstring_parser import parse

from bench.config.help_text import default_in_words, values
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
                allowed = ", ".join(dict.fromkeys(values(hints[f.name])))
                cells = f"`--{prefix}{f.name}`", allowed, default_in_words(f.default), meaning
                lines.append((f"{prefix}{f.name}", f"| {' | '.join(cells)} |"))
        yield (documented.short_description or "").partition(". ")[0].rstrip("."), lines
        for name in nested:
            yield from sections(hints[name], f"{prefix}{name}.")


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
