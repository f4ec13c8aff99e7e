"""The page of a report: one HTML file with its scripts, charts and rows inside.

Names and numbers from files enter the page only as JSON, and the script inserts them as text.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from bench import rows
from bench.report import csv_table, draw_plotly, labels
from bench.report.catalogue import Card, left_out
from bench.report.inputs import ReportInputs
from odysseus.config.run import RunConfig
from odysseus.io import files

MOST_ROWS = 10_000
"""Most rows in the page's table; browsers stay fast up to this number."""
_MARK = b"<title>Parallelism report</title>"
"""Text by which a page is known."""
_SCRIPTS = ("page.js", "download.js", "table.js", "start.js")
_MIB = 1 / 2**20
# Column of a row: (heading, factor of a number; 0 for text).
_TABLE: dict[str, tuple[str, float]] = {
    "layout": ("layout", 0),
    "method": ("method", 0),
    "model": ("model", 0),
    "mode": ("mode", 0),
    "hardware": ("hardware", 0),
    "world_size": ("ranks", 1),
    "sequence_parallel_size": ("sequence axis", 1),
    "tensor_parallel_size": ("tensor axis", 1),
    "expert_parallel_size": ("expert axis", 1),
    "router_load": ("expert load", 0),
    "ring_parallel_size": ("ring axis", 1),
    "seq_len": ("tokens", 1),
    "dtype": ("dtype", 0),
    "tricks": ("tricks", 0),
    "status": ("status", 0),
    "step_ms_p50": ("step (ms)", 1),
    "tokens_per_s": ("tokens/s", 1),
    "tokens_per_s_per_gpu": ("tokens/s per rank", 1),
    "mfu": ("MFU (%)", 100),
    "comm_bytes_total": ("sent (MiB)", _MIB),
    "theory_comm_bytes_total": ("formula (MiB)", _MIB),
    "peak_memory_bytes": ("peak (MiB)", _MIB),
    "peak_host_bytes": ("host (MiB)", _MIB),
    "loss_last": ("loss", 1),
    "error": ("error", 0),
    "utc": ("time (UTC)", 0),
    "git_commit": ("commit", 0),
    "file": ("file", 0),
}
_LONGEST = 200
"""Most characters of a table cell."""
_ALWAYS = ("method", "model", "world_size", "seq_len", "dtype", "mode", "device", "hardware")
"""Columns of a row's key that the page shows also where they have their defaults."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of the sweep whose page it is.

    Attributes:
        heading: Text below the title.
        status: Text after it: running, ended, stopped; empty for a page of a report.
        reload_s: Seconds after which the page reloads itself; 0 for never.
        news_s: Seconds within which a running sweep writes its page again.
    """

    heading: str
    status: str = ""
    reload_s: int = 0
    news_s: int = 0


def html(given: ReportInputs, cards: list[Card], progress: Progress | None = None) -> str:
    """The text of the page.

    Args:
        progress: The state of the sweep; None for a report.
    """
    cells = given.cells
    notes = list(given.notes)
    if len(cells) > MOST_ROWS:
        notes.append(f"the table has the last {MOST_ROWS} of {len(cells)} rows; the files have all")
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    content = {
        "notes": notes,
        "left_out": left_out(cards),
        "cards": [
            {
                "name": card.name,
                "title": card.title,
                "notes": card.notes,
                "charts": [draw_plotly.drawn(chart) for chart in card.charts],
            }
            for card in cards
            if card.charts
        ],
        "table": table(given),
    }
    folder = resources.files("bench.report") / "page"
    filled = (folder / "page.html").read_text(encoding="utf-8")
    # The data come last, so that no text in them is taken for a placeholder.
    for name, text in (
        ("STYLE", (folder / "page.css").read_text(encoding="utf-8")),
        ("PLOTLY", get_plotlyjs()),
        ("SCRIPT", "\n".join((folder / n).read_text(encoding="utf-8") for n in _SCRIPTS)),
        ("CONTENT", as_json(content)),
    ):
        filled = filled.replace(f"<!--{name}-->", text, 1)
    return with_progress(filled, progress or Progress(heading=f"{len(cells)} rows, {made}"))


def with_progress(text: str, progress: Progress) -> str:
    """The page with another state of the sweep, as of now."""
    state = as_json(asdict(progress) | {"written_s": int(time.time())})
    before, element, rest = text.partition('id="state">')
    return before + element + state + rest[rest.index("<") :]


def as_json(content: Any) -> str:
    """JSON that is safe inside a script element, whatever text it contains."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write(text: str, path: Path) -> None:
    """Write the page; a browser never reads half a page."""
    files.write(path, text)


def check_writable(path: Path, option: str) -> None:
    """Raise ValueError unless a page can be written, over nothing but an earlier page."""

    def foreign(path: Path) -> str:
        is_page = _MARK in path.read_bytes()[:2000]
        return "" if is_page else "it is no page that report wrote"

    files.check_output(
        option, path, "a folder without report.html, or with an earlier one", foreign
    )


def table(given: ReportInputs) -> dict[str, Any]:
    """The table as JSON.

    It has headings, whether each column is numeric, values by column (missing ones null), the
    numbers of noisy rows, the files' own columns and texts, and the default of each column that
    identifies a cell. Columns in which all rows are the same are last.
    """
    cells = given.cells.tail(MOST_ROWS)
    cells = cells.assign(layout=labels.layouts(cells), tricks=labels.tricks(cells))
    columns = {}
    for name, (heading, factor) in _TABLE.items():
        if factor:
            numbers = pd.to_numeric(cells[name], errors="coerce").astype(float) * factor
            columns[heading] = draw_plotly.numbers(numbers.tolist())
        else:
            columns[heading] = [text[:_LONGEST] for text in cells[name]]
    numeric = {heading: factor != 0 for heading, factor in _TABLE.values()}
    headings = sorted(columns, key=lambda heading: len(set(columns[heading])) < 2)
    return {
        "headings": headings,
        "numeric": [numeric[heading] for heading in headings],
        "columns": [columns[heading] for heading in headings],
        "noisy": [at for at, noisy in enumerate(cells["noisy"]) if noisy == "True"],
        "file": _file_columns(given.texts.tail(MOST_ROWS)),
        "key": _key_defaults(),
    }


def _file_columns(texts: pd.DataFrame) -> dict[str, dict[str, list[Any]]]:
    """The distinct texts of each column, and the number of each row's text.

    There are no numbers where all rows have the first text.
    """
    packed = {}
    for name in texts:
        column = [csv_table.as_text(value) for value in texts[name]]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(column))}
        at = [numbers[text] for text in column] if len(numbers) > 1 else []
        packed[str(name)] = {"texts": [*numbers], "at": at}
    return packed


def _key_defaults() -> dict[str, str | None]:
    """The default of each column of a row's key, null for those that are always shown."""
    defaults = rows.identity(RunConfig())
    return {
        name: None if name in _ALWAYS or defaults[name] is None else str(defaults[name])
        for name in dict.fromkeys((*rows.KEY, "hardware", "hardware_sha256"))
    }
