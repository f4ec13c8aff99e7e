"""A report that ends early leaves whole files only."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from bench.__main__ import main
from tests.support.launched import bench, finished
from tests.support.marks import slow
from tests.support.reports import EXAMPLE

ENDS = {".png": b"IEND\xaeB`\x82", ".svg": b"</svg>\n", ".pdf": b"%%EOF\n", ".html": b"</html>\n"}


def halves(folder: Path) -> Iterator[str]:
    """Names of the files that are not whole."""
    for path in folder.iterdir():
        if not path.read_bytes().endswith(ENDS.get(path.suffix, b"?")):
            yield path.name


def test_a_figure_that_fails_leaves_the_page_and_no_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Figure.savefig

    def failing(figure: Figure, to: Any, **options: Any) -> None:
        write(figure, to, **options)
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", failing)
    assert main(["report", "--rows", str(EXAMPLE), "--out", str(tmp_path)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert list(halves(tmp_path)) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGINT), slow(signal.SIGKILL)])
def test_a_signal_leaves_whole_files(tmp_path: Path, number: signal.Signals) -> None:
    process = bench("report", "--rows", str(EXAMPLE), "--out", str(tmp_path))
    deadline = time.monotonic() + 60
    while not (tmp_path / "report.html").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 2))
    process.send_signal(number)
    status, _, _ = finished(process, 30)
    assert status in (0, -number, 128 + number)
    drafts = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert drafts == [] or number == signal.SIGKILL
    for draft in drafts:
        draft.unlink()
    assert "report.html" in {path.name for path in tmp_path.iterdir()}
    assert list(halves(tmp_path)) == []
