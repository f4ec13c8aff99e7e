"""A docstring begins with a verb, or with the noun that is returned."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.paths import ROOT

FOLDERS = ("odysseus", "methods", "bench", "scripts")
_QUESTION_OR_PREPOSITION = re.compile(
    r"(What|Who|Where|Which|How|As|Of|By|In|On|At|From|That|Those|So|And)\b"
)


def wrong_beginnings(source: str) -> list[str]:
    """First lines of the docstrings that begin with none of the two."""
    nodes = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    texts = [ast.get_docstring(node) or "" for node in nodes]
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
    source = 'def f():\n    """What a row has."""\n\nclass A:\n    """Rows of results."""\n'
    assert wrong_beginnings(source) == ["What a row has."]
