"""docs/architecture.md names files that exist, and every package."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text()
TABLES = re.findall(r"^\| (odysseus|methods|bench|scripts)/ \|.*\n\|.*\n((?:\|.*\n)+)", PAGE, re.M)


def test_every_folder_and_file_of_the_tables_exists() -> None:
    missing = []
    for top, table in TABLES:
        for row in table.splitlines():
            first, *others = row.strip("| ").split(" | ")
            homes = [ROOT / top / name for name in re.findall(r"`([\w/]+)/`", first)] or [
                ROOT / top
            ]
            names = re.findall(r"`([\w/]+(?:\.py|/))`", " ".join([first, *others]))
            missing += [
                f"{top}: {name}"
                for name in names
                if not any((home / name).exists() for home in [*homes, ROOT / top])
            ]
    assert len(TABLES) == 4
    assert missing == []


def test_every_package_has_its_row() -> None:
    first_cells = {top: "".join(re.findall(r"^\| ([^|]*)\|", table, re.M)) for top, table in TABLES}
    packages = [
        f"{top}/{path.parent.name}"
        for top in ("odysseus", "bench")
        for path in sorted((ROOT / top).glob("*/__init__.py"))
        if f"`{path.parent.name}/`" not in first_cells[top]
    ]
    assert packages == []
