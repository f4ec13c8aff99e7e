"""Lines of prose in the README, CONTRIBUTING and docs/ fit on a screen: at most 100 wide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

WIDEST = 100
GENERATED = {"toggles.md"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK_ALONE = re.compile(r"\s*([-*] )?!?\[[^\]]*\]\([^)]*\)[.,:;]?\s*")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of every line that is no table, code block, comment or link alone."""
    in_code = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not (in_code or line.startswith(("|", "<!--")) or _LINK_ALONE.fullmatch(line)):
            yield number, line


def too_wide(text: str) -> list[int]:
    return [number for number, line in prose(text) if len(line) > WIDEST]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name not in GENERATED], ids=lambda p: p.name
)
def test_no_line_of_prose_is_too_wide(page: Path) -> None:
    wide = too_wide(page.read_text())
    assert wide == [], f"lines of {page.name} wider than {WIDEST}"


def test_only_prose_counts() -> None:
    long = "word " * 30
    assert too_wide(f"{long}\n") == [1]
    assert too_wide(f"- {long}\n") == [1]
    assert too_wide(f"```\n{long}\n```\n| {long} |\n<!-- {long} -->\n![{long}](a.png)\n") == []
