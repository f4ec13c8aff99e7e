"""docs/hardware.md explains every field of a hardware profile, and lists every profile."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from bench.hardware.profiles import PROFILES, Hardware
from bench.hardware.speeds import Attention, Link, Speeds
from tests.support.paths import ROOT

PAGE = (ROOT / "docs/hardware.md").read_text()
_WITHOUT_A_MEASURE = {"device", "dtype"}


def rows_of(heading: str) -> dict[str, list[str]]:
    """Return the cells of the table below a heading, by the name in the first column."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M)
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in lines}


@pytest.mark.parametrize(
    ("heading", "group"), [("Fields of a node", Hardware), ("Fields of its speeds", Speeds)]
)
def test_every_field_has_a_unit_a_meaning_and_a_way_to_find_it(heading: str, group: type) -> None:
    table = rows_of(heading)
    assert table.keys() == {field.name for field in fields(group)}
    for name, cells in table.items():
        unit, meaning, *found = cells
        assert unit, name
        assert len(meaning.split()) > 2, name
        assert name in _WITHOUT_A_MEASURE or (len(found) == 1 and found[0]), name


def test_the_parts_of_a_curve_by_kernel_and_of_a_link_are_explained() -> None:
    table = rows_of("Fields of its speeds")
    for name, group in (("attention", Attention), ("links", Link)):
        missing = [f.name for f in fields(group) if f"`{f.name}`" not in table[name][1]]
        assert missing == []


def test_every_built_in_profile_is_listed() -> None:
    listed = re.findall(r"^\| `([\w-]+)` \|[^|]*\| (yes|no)", PAGE, re.M)
    assert dict(listed) == {name: "yes" if of.speeds else "no" for name, of in PROFILES.items()}
