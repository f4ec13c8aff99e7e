"""The report's page in a browser: charts are drawn, the table sorts and filters, text stays
text; and the bar of a running sweep."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tqdm import tqdm

from bench.commands import sweep
from bench.report import catalogue, inputs, page
from tests.support.browser import needs_chromium, seen_in
from tests.support.marks import slow
from tests.support.paths import RESULTS
from tests.support.reports import EVIL, EXAMPLE, hostile, written

# What a reader does, and what is on the page then.
# LAYOUT stands for the words that are searched for last, and whose rows are saved.
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
  seen.key = document.querySelector("tbody tr").title;
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
  const head_of = document.querySelector("#memory h2").textContent;
  seen.heading = [head_of, text("#heading")[0], text("#left_out")[0], text("th").slice(-3)];
  seen.focus = [...document.querySelectorAll(".save button, #csv")].every((button) => {
    button.focus();
    return document.activeElement === button;
  });
  seen.wide = document.documentElement.scrollWidth - innerWidth;
  change("#search", "LAYOUT", "input");
  seen.layout = [...new Set(column("layout"))];
  const saved = {};
  window.Blob = class extends Blob {
    constructor(parts, options) { super(parts, options); this.parts = parts; }
  };
  const blobs = new Map();
  const create = URL.createObjectURL;
  URL.createObjectURL = (blob) => {
    const url = create.call(URL, blob);
    blobs.set(url, blob);
    return url;
  };
  HTMLAnchorElement.prototype.click = function click() { saved[this.download] = this.href; };
  for (const button of document.querySelectorAll("#memory .save button, #csv")) button.click();
  seen.waste = 0;
  const wait = setInterval(() => {
    for (let spin = 0; spin < 3e6; spin += 1) seen.waste += spin; // real time
    if (Object.keys(saved).length < 3) return;
    clearInterval(wait);
    seen.csv = blobs.get(saved["rows.csv"]).parts[0];
    seen.svg = blobs.get(saved["memory.svg"]).parts[0];
    seen.png = saved["memory.png"].slice(0, 40);
    document.body.append(Object.assign(document.createElement("pre"),
      { id: "seen", textContent: JSON.stringify(seen) }));
  }, 20);
});
</script>
"""


def shown(folder: Path, *paths: Path, width: int = 1280, words: str = "") -> dict[str, Any]:
    """Return the contents of these files' page in a browser; fail if the console has any
    message."""
    given = inputs.read([*paths])
    text = page.html(given, catalogue.cards(given, inputs.drawable(given)))
    return seen_in(folder, text, READER.replace("LAYOUT", words), width)


@needs_chromium
@pytest.mark.parametrize("width", [1280, slow(500)])
def test_the_page_works_from_disk(tmp_path: Path, width: int) -> None:
    steps, errors = RESULTS / "verify" / "tp.csv", RESULTS / "emulated" / "errors.csv"
    tables = (EXAMPLE, RESULTS / "ablation.csv", RESULTS / "ring.csv")
    files = *tables, steps, errors, RESULTS / "map_llama3-8b_h100.csv"
    seen = shown(tmp_path, *files, width=width, words="ulysses ring 2")
    assert seen["errors"] == []
    drawn = {name for name, traces in seen["cards"].items() if traces}
    others = {"ablation", "balance", "prediction", "verify", "map"}
    assert drawn == {"throughput", "traffic", "memory", *others}
    assert set(seen["cards"]) == drawn  # no card without a figure
    memory, heading, left_out, last = seen["heading"]
    assert memory == "Peak memory, measured"
    assert heading.startswith("204 rows, ")
    assert "A block in time (no JSON of run --trace among the files)" in left_out
    assert "error" in last  # the same in all rows
    assert "seq_len: " in seen["key"]
    assert "learning_rate" not in seen["key"]  # it has its default
    assert seen["focus"]
    assert len(seen["all"]) == 100
    rising = [float(text) for text in seen["rising"]]
    assert rising == sorted(rising)
    falling = [float(text) for text in seen["falling"]]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > rising[0]
    assert seen["methods"] == ["odysseus"]
    methods, names = seen["found"]
    assert (set(methods), set(names)) == ({"ulysses"}, {"ring.csv"})
    assert "ulysses x ring 2" in seen["layout"]
    assert all("ring" in layout for layout in seen["layout"])
    assert seen["svg"].startswith("<svg")
    assert "Peak memory, measured" in seen["svg"]
    assert seen["png"].startswith("data:image/png;base64,iVBOR")
    assert seen["count"].startswith(f"{len(methods)} of ")
    assert seen["lines"] - seen["fewer"] == 2  # a line in each of two panels
    assert seen["wide"] <= 0  # only tables and wide charts scroll sideways, in themselves


@needs_chromium
def test_markup_in_rows_is_shown_as_text(tmp_path: Path) -> None:
    """The rows that a reader saves are the file's own, to the letter."""
    table = hostile()
    table.loc[1, "error"] = '=1+1, "quoted"\nand a line'
    path = written(table, tmp_path / "rows.csv")
    seen = shown(tmp_path, path)
    saved = pd.read_csv(io.StringIO(seen["csv"]), dtype=str, keep_default_na=False)
    assert [*saved] == [*table]
    assert sorted(saved.to_numpy().tolist()) == sorted(table.to_numpy().tolist())
    assert seen["title"] == "Parallelism report"
    assert (seen["errors"], seen["images"]) == ([], 0)
    assert EVIL in seen["all"]
    assert seen["cards"]["memory"] > 0


def test_cells_that_had_rows_say_nothing_of_the_time_left() -> None:
    with tqdm(total=4, smoothing=0, file=io.StringIO()) as progress:
        sweep._skip(progress, 2)
        progress.update()
        known = progress.format_dict | {"elapsed": 10}
    assert "00:10<00:10" in tqdm.format_meter(**known)  # one cell in 10 s, one left
