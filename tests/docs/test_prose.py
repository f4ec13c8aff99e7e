"""Prose and commands in the README, CONTRIBUTING, docs/ and results/ are at most 100 wide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

WIDEST = 100
GENERATED = {"toggles.md"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "results").glob("*.md"))
_LINK_ALONE = re.compile(r"\s*([-*] )?!?\[[^\]]*\]\([^)]*\)[.,:;]?\s*")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of lines that are no table, output, comment or link alone."""
    in_code = in_commands = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            in_commands = line.strip() == "```bash"
            in_code = not in_code
        elif in_commands or not (
            in_code or line.startswith(("|", "<!--")) or _LINK_ALONE.fullmatch(line)
        ):
            yield number, line


def too_wide(text: str) -> list[int]:
    """Return the numbers of the lines that are wider than the widest allowed."""
    return [number for number, line in prose(text) if len(line) > WIDEST]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name not in GENERATED], ids=lambda p: p.name
)
def test_no_line_of_prose_is_too_wide(page: Path) -> None:
    wide = too_wide(page.read_text())
    assert wide == [], f"lines of {page.name} wider than {WIDEST}"


def test_only_prose_and_commands_count() -> None:
    long = "word " * 30
    assert too_wide(f"{long}\n") == [1]
    assert too_wide(f"- {long}\n") == [1]
    assert too_wide(f"```bash\n{long}\n```\n") == [2]
    assert too_wide(f"```\n{long}\n```\n| {long} |\n<!-- {long} -->\n![{long}](a.png)\n") == []
