"""The report's page in a browser: charts are drawn, the table sorts and filters, text stays text;
and the page of a sweep that is running."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from bench.__main__ import main
from bench.commands import sweep
from bench.report import catalogue, inputs, live_page, page
from tests.support.marks import slow
from tests.support.paths import RESULTS
from tests.support.reports import EVIL, EXAMPLE, OF_CELLS, hostile, written

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# What a reader does, and what is on the page then.
READER = """
<script>
addEventListener("load", () => {
  const text = (query) => [...document.querySelectorAll(query)].map((found) => found.textContent);
  const column = (name) => {
    const at = text("th").findIndex((head) => head.startsWith(name)) + 1;
    return text(`tbody td:nth-child(${at})`);
  };
  const change = (query, value, kind) => {
    const field = document.querySelector(query);
    field.value = value;
    field.dispatchEvent(new Event(kind));
  };
  const head = (name) => [...document.querySelectorAll("th button")].find(
    (button) => button.textContent.startsWith(name));
  const seen = { title: document.title, errors: window.failures, images: document.images.length };
  seen.cards = Object.fromEntries([...document.querySelectorAll("#cards section")].map((card) => (
    [card.id, card.querySelectorAll(".scatterlayer .trace, .barlayer .trace").length])));
  seen.notes = text("#cards .note");
  seen.all = column("method");
  head("step (ms)").click();
  seen.rising = column("step (ms)");
  head("step (ms)").click();
  seen.falling = column("step (ms)");
  change("#filters select[name=method]", "odysseus", "change");
  seen.methods = [...new Set(column("method"))];
  change("#filters select[name=method]", "", "change");
  change("#search", "ULYSSES ring.csv", "input");
  seen.found = [column("method"), column("file")];
  seen.count = text("#count")[0];
  const lines = () => document.querySelectorAll("#throughput .scatterlayer .trace").length;
  seen.lines = lines();
  document.querySelector("#throughput .legend button").click();
  seen.fewer = lines();
  seen.wide = document.documentElement.scrollWidth - innerWidth;
  document.body.append(Object.assign(document.createElement("pre"),
    { id: "seen", textContent: JSON.stringify(seen) }));
});
</script>
"""
WATCHED = "<script>window.failures=[];onerror=(what)=>{failures.push(String(what))};</script>"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


def shown(folder: Path, *paths: Path, width: int = 1280) -> dict[str, Any]:
    """Return the contents of these files' page in a browser; fail if the console has any
    message."""
    given = inputs.read([*paths])
    text = page.html(given, catalogue.cards(given, inputs.drawable(given)))
    file = folder / "page.html"
    file.write_text(text.replace("<head>", "<head>" + WATCHED).replace("</body>", READER))
    flags = "--headless --no-sandbox --disable-gpu --dump-dom --enable-logging=stderr"
    flags += f" --virtual-time-budget=60000 --window-size={width},900"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={folder}/profile", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr
    seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert seen is not None, done.stderr[-2000:]
    return json.loads(unescape(seen[1]))


@needs_chromium
@pytest.mark.parametrize("width", [1280, slow(500)])
def test_the_page_works_from_disk(tmp_path: Path, width: int) -> None:
    steps, errors = RESULTS / "verify" / "tp.csv", RESULTS / "emulated" / "errors.csv"
    tables = (EXAMPLE, RESULTS / "ablation.csv", RESULTS / "ring.csv")
    seen = shown(tmp_path, *tables, steps, errors, RESULTS / "map_llama3-8b_h100.csv", width=width)
    assert seen["errors"] == []
    drawn = {name for name, traces in seen["cards"].items() if traces}
    others = {"ablation", "balance", "prediction", "verify", "map"}
    assert drawn == {*OF_CELLS, *others}
    assert any("no trace" in note for note in seen["notes"])
    assert len(seen["all"]) == 100
    rising = [float(text) for text in seen["rising"]]
    assert rising == sorted(rising)
    falling = [float(text) for text in seen["falling"]]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > rising[0]
    assert seen["methods"] == ["odysseus"]
    methods, names = seen["found"]
    assert (set(methods), set(names)) == ({"ulysses"}, {"ring.csv"})
    assert seen["count"].startswith(f"{len(methods)} of ")
    assert seen["lines"] - seen["fewer"] == 2  # a line in each of two panels
    assert seen["wide"] <= 0  # only tables and wide charts scroll sideways, in themselves


@needs_chromium
def test_markup_in_rows_is_shown_as_text(tmp_path: Path) -> None:
    seen = shown(tmp_path, written(hostile(), tmp_path / "rows.csv"))
    assert seen["title"] == "Parallelism report"
    assert (seen["errors"], seen["images"]) == ([], 0)
    assert EVIL in seen["all"]
    assert seen["cards"]["memory"] > 0


def test_a_sweep_writes_its_page_as_rows_land(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headings, write = [], page.write

    def noted(text: str, path: Path) -> None:
        content = json.loads(text.split('id="content">')[1].split("</script>")[0])
        headings.append(
            (content["heading"], content["reload_s"], len(content["table"]["columns"][0]))
        )
        write(text, path)

    monkeypatch.setattr(page, "write", noted)
    flags = [
        "sweep",
        "--dry_run",
        "true",
        "--world_size",
        "2",
        "--seq_len",
        "512",
        "--method",
        "[tp,ulysses]",
    ]
    flags += ["--out", str(tmp_path / "rows.csv"), "--watch", str(tmp_path / "live")]
    assert main(flags) == 0
    running = f"running, reloaded every {live_page.RELOAD_S} s"
    assert headings == [
        (f"0 of 2 cells of rows.csv; {running}", live_page.RELOAD_S, 0),
        (f"1 of 2 cells of rows.csv; {running}", live_page.RELOAD_S, 1),
        (f"2 of 2 cells of rows.csv; {running}", live_page.RELOAD_S, 2),
        ("2 of 2 cells of rows.csv; ended", 0, 2),
    ]
    assert (tmp_path / "live" / "report.html").is_file()


def test_a_folder_that_cannot_be_made_stops_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    flags = ["sweep", "--dry_run", "true", "--world_size", "2", "--seq_len", "512"]
    flags += ["--method", "[tp,ulysses]"]
    assert main([*flags, "--watch", str(tmp_path / "file" / "live")]) == 2
    assert "watch = " in capsys.readouterr().err
    assert not (tmp_path / "rows.csv").exists()


def test_cells_that_had_rows_say_nothing_of_the_time_left() -> None:
    with tqdm(total=4, smoothing=0, file=io.StringIO()) as progress:
        sweep._skip(progress, 2)
        progress.update()
        known = progress.format_dict | {"elapsed": 10}
    assert "00:10<00:10" in tqdm.format_meter(**known)  # one cell in 10 s, one left
