"""The notebook of figures runs as it ships, and ships without what it printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

NOTEBOOK = ROOT / "scripts" / "figures.ipynb"
OUT = 'Path(\\"results/paper\\")'

RUN = """
import sys, nbclient, nbformat
book = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(book, sys.argv[1])
"""


def code(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The notebook's code cells."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_ships_without_outputs() -> None:
    cells = code(json.loads(NOTEBOOK.read_text()))
    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)
    assert {cell["execution_count"] for cell in cells} == {None}


def test_it_draws_nothing_itself() -> None:
    assert [
        word for word in ("matplotlib", "plotly", ".plot(") if word in NOTEBOOK.read_text()
    ] == []


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path) -> None:
    """Run every cell headless, with its figures in another folder."""
    text = NOTEBOOK.read_text()
    assert text.count(OUT) == 1
    copy = tmp_path / NOTEBOOK.name
    copy.write_text(text.replace(OUT, f'Path(\\"{tmp_path}/paper\\")'))
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(copy), str(NOTEBOOK.parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs = [cell["outputs"] for cell in code(json.loads(copy.read_text()))]
    shown = [kind for of in outputs for output in of for kind in output.get("data", {})]
    drawn = {path.stem for path in (tmp_path / "paper").rglob("*.svg")}
    assert {"traffic", "memory", "ablation", "balance", "compare", "verify", "map"} <= drawn
    assert list((tmp_path / "paper").rglob("*.png")) == []
    assert shown.count("image/svg+xml") == 9
    assert shown.count("text/html") == 3
