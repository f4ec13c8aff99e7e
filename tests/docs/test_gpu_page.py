"""docs/gpu.md names tests that exist."""

from __future__ import annotations

import re

import pytest

from tests.support.paths import ROOT

NAMED = sorted({*re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs/gpu.md").read_text())})


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_test_that_the_page_names_exists(file: str, test: str) -> None:
    assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text()


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 20
