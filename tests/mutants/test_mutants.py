"""Every mutant applies to the code as it is; the page shows results of mutants that exist."""

from __future__ import annotations

import pytest

from tests.mutants.run import PAGE, Mutant, mutants
from tests.support.paths import ROOT


@pytest.mark.parametrize("mutant", mutants(), ids=lambda m: m.name)
def test_a_mutant_applies(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    assert mutant.applied(text) != text
    assert [t for t in mutant.tests if not t.startswith("-") and not (ROOT / t).is_file()] == []


def test_the_page_has_mutants_that_exist() -> None:
    known = {f"| {m.name} | `{m.file}` | " for m in mutants()}
    rows = [row for row in PAGE.read_text().splitlines() if row.startswith("| ")][2:]
    assert [row for row in rows if not any(row.startswith(start) for start in known)] == []
    assert rows
