"""A docstring begins with a verb, or with the noun that is returned."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.paths import ROOT

FOLDERS = ("odysseus", "methods", "bench", "scripts", "tests")
_QUESTION_OR_PREPOSITION = re.compile(
    r"(What|Who|Where|Which|How|As|Of|By|In|On|At|From|With|To|For|That|Those|So|And)\b"
)


def wrong_beginnings(source: str) -> list[str]:
    """First lines of the texts in a module that begin with neither.

    Docstrings count, and documentation below the name that it explains.
    """
    texts = [
        node.value.value.strip()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    return [text.splitlines()[0] for text in texts if _QUESTION_OR_PREPOSITION.match(text)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_docstring_begins_with_a_question_or_a_preposition(folder: str) -> None:
    found = {
        str(file.relative_to(ROOT)): wrong
        for file in sorted((ROOT / folder).rglob("*.py"))
        if (wrong := wrong_beginnings(file.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_a_wrong_beginning_is_found() -> None:
    source = (
        'def f():\n    """What a row has."""\n\nclass A:\n    """Rows."""\nX = 1\n"""Of a row."""\n'
    )
    assert wrong_beginnings(source) == ["Of a row.", "What a row has."]
