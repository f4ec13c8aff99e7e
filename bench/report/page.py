"""The page of a report: one HTML file with its scripts, charts and rows inside.

Names and numbers from files enter the page only as JSON, and the script inserts them as text.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from bench.report import draw_plotly, labels
from bench.report.catalogue import Card
from bench.report.inputs import ReportInputs
from odysseus.io import files

MOST_ROWS = 10_000
"""Most rows in the page's table; browsers stay fast up to this number."""
_MARK = b"<title>Parallelism report</title>"
"""Text by which a page is known."""
_MIB = 1 / 2**20
# Column of a row: (heading, factor of a number; 0 for text).
_TABLE: dict[str, tuple[str, float]] = {
    "method": ("method", 0),
    "model": ("model", 0),
    "mode": ("mode", 0),
    "hardware": ("hardware", 0),
    "world_size": ("ranks", 1),
    "sequence_parallel_size": ("sequence axis", 1),
    "ring_parallel_size": ("ring axis", 1),
    "seq_len": ("tokens", 1),
    "dtype": ("dtype", 0),
    "tricks": ("tricks", 0),
    "status": ("status", 0),
    "step_ms_p50": ("step (ms)", 1),
    "tokens_per_s": ("tokens/s", 1),
    "tokens_per_s_per_gpu": ("tokens/s a rank", 1),
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


def html(given: ReportInputs, cards: list[Card], reload_s: int = 0, heading: str = "") -> str:
    """The text of the page.

    Args:
        reload_s: Seconds after which the page reloads itself; 0 for never.
        heading: Text below the title, such as the progress of a sweep.
    """
    cells = given.cells
    notes = list(given.notes)
    if len(cells) > MOST_ROWS:
        notes.append(f"the table has the last {MOST_ROWS} of {len(cells)} rows; the files have all")
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    content = {
        "heading": heading or f"{len(cells)} rows, {made}",
        "reload_s": reload_s,
        "notes": notes,
        "cards": [
            {
                "name": card.name,
                "title": card.title,
                "notes": card.notes,
                "charts": [draw_plotly.drawn(chart) for chart in card.charts],
            }
            for card in cards
        ],
        "table": table(cells.tail(MOST_ROWS)),
    }
    folder = resources.files("bench.report") / "page"
    filled = (folder / "page.html").read_text(encoding="utf-8")
    # The data come last, so that no text in them is taken for a placeholder.
    for name, text in (
        ("STYLE", (folder / "page.css").read_text(encoding="utf-8")),
        ("PLOTLY", get_plotlyjs()),
        ("SCRIPT", (folder / "page.js").read_text(encoding="utf-8")),
        ("CONTENT", as_json(content)),
    ):
        filled = filled.replace(f"<!--{name}-->", text, 1)
    return filled


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


def table(cells: pd.DataFrame) -> dict[str, Any]:
    """The table as JSON: headings, whether each column is numeric, and values by column (missing
    ones null)."""
    cells = cells.assign(tricks=labels.tricks(cells))
    columns = []
    for name, (_, factor) in _TABLE.items():
        if factor:
            numbers = pd.to_numeric(cells[name], errors="coerce").astype(float) * factor
            columns.append(draw_plotly.numbers(numbers.tolist()))
        else:
            columns.append([text[:_LONGEST] for text in cells[name]])
    return {
        "headings": [heading for heading, _ in _TABLE.values()],
        "numeric": [factor != 0 for _, factor in _TABLE.values()],
        "columns": columns,
    }
