"""The page of a sweep: written as rows land, and true when the sweep stops before its end."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.report import inputs, live_page, page
from bench.runner import launch
from odysseus.config.run import RunConfig
from tests.support.browser import needs_chromium, seen_in
from tests.support.launched import bench, finished
from tests.support.marks import slow


def state_of(text: str) -> dict[str, Any]:
    return json.loads(text.split('id="state">')[1].split("</script>")[0])


def rows_of(text: str) -> int:
    content = json.loads(text.split('id="content">')[1].split("</script>")[0])
    return len(content["table"]["columns"][0])


def sweep_flags(folder: Path) -> list[str]:
    flags = "sweep --dry_run true --world_size 2 --seq_len 512 --method [tp,ulysses] --timeout_s 77"
    return [*flags.split(), "--out", f"{folder}/rows.csv", "--watch", f"{folder}/live"]


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of all pages that are written."""
    texts, write = [], page.write

    def noted(text: str, path: Path) -> None:
        texts.append(text)
        write(text, path)

    monkeypatch.setattr(page, "write", noted)
    return texts


def test_a_sweep_writes_its_page_as_rows_land(tmp_path: Path, pages: list[str]) -> None:
    assert main(sweep_flags(tmp_path)) == 0
    running = f"running, reloaded every {live_page.RELOAD_S} s"
    limit_s = 77 + live_page.DRAWING_S
    states = [state_of(text) for text in pages]
    assert [(s["heading"], s["status"], s["reload_s"]) for s in states] == [
        ("0 of 2 cells of rows.csv", running, live_page.RELOAD_S),
        ("1 of 2 cells of rows.csv", running, live_page.RELOAD_S),
        ("2 of 2 cells of rows.csv", "ended", 0),
    ]
    assert [s["news_s"] for s in states[:2]] == [limit_s, limit_s]
    assert [rows_of(text) for text in pages] == [0, 1, 2]
    assert (tmp_path / "live" / "report.html").read_text() == pages[-1]


def test_the_page_of_a_sweep_that_fails_says_that_it_stopped(
    tmp_path: Path, pages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = launch.run_round

    def second_fails(run: RunConfig, is_first: bool) -> dict[str, Any]:
        if run.method == "ulysses":
            raise OSError("disk full")
        return count(run)

    monkeypatch.setattr(launch, "run_round", second_fails)
    assert main(sweep_flags(tmp_path)) == 1
    state = state_of(pages[-1])
    assert state["heading"] == "rows.csv: stopped after 1 of 2 cells"
    assert (state["status"], state["reload_s"]) == ("", 0)
    assert rows_of(pages[-1]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_page_of_a_sweep_that_a_signal_ends_says_so(
    tmp_path: Path, number: signal.Signals
) -> None:
    seeds = ",".join(map(str, range(500)))
    process = bench(*sweep_flags(tmp_path), "--seed", f"[{seeds}]")
    path = tmp_path / "live" / "report.html"
    deadline = time.monotonic() + 60
    while not (path.exists() and rows_of(path.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert finished(process, 30)[0] == 128 + number
    text = path.read_text()
    heading = f"rows.csv: stopped after {rows_of(text)} of 1000 cells"
    assert state_of(text)["heading"] == heading
    assert [path.name for path in path.parent.iterdir()] == ["report.html"]


@needs_chromium
@pytest.mark.parametrize(
    ("silence_s", "expected"),
    [
        slow(0, "1 of 2 cells; running"),
        slow(90, "1 of 2 cells; running; last news 1 minute ago"),
        (400, "1 of 2 cells; no news for 6 minutes: the sweep has probably stopped"),
    ],
)
def test_a_page_without_news_says_so(
    silence_s: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that SIGKILL ends cannot write its page again."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - silence_s)
    progress = page.Progress(heading="1 of 2 cells", status="running", reload_s=50, news_s=300)
    text = page.html(inputs.read([]), [], progress)
    monkeypatch.undo()
    reader = """<script>document.body.append(Object.assign(document.createElement("pre"),
        { id: "seen", textContent: JSON.stringify(
          { heading: document.getElementById("heading").textContent }) }));</script>"""
    assert seen_in(tmp_path, text, reader, seconds=5)["heading"] == expected


def test_a_folder_that_cannot_be_made_stops_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    flags = ["sweep", "--dry_run", "true", "--world_size", "2", "--seq_len", "512"]
    flags += ["--method", "[tp,ulysses]"]
    assert main([*flags, "--watch", str(tmp_path / "file" / "live")]) == 2
    assert "watch = " in capsys.readouterr().err
    assert not (tmp_path / "rows.csv").exists()
