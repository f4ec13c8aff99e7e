"""``python -m bench report``: draw a page, figures and a table from rows."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pandas as pd

from bench.hardware import profile_file
from bench.hardware.profiles import PROFILES
from bench.report import catalogue, inputs, page, spread
from bench.report.look import LOOKS

_SHOWN = 200
"""Rows of the table on the terminal."""
_FORMATS = {
    **dict.fromkeys(("world_size", "seq_len", "tokens_per_s"), "{:.0f}"),
    **dict.fromkeys(("comm_mib", "theory_mib"), "{:.2f}"),
    **dict.fromkeys(("peak_mib", "mfu"), "{:.1f}"),
    **{"step_ms_p50": "{:.0f}", "loss_last": "{:.4f}"},
}
_TABLE = {
    "mode": "mode",
    "layout": "layout",
    "world_size": "ranks",
    "seq_len": "tokens",
    "step_ms_p50": "step ms",
    "place": "place",
    "tokens_per_s": "tokens/s",
    "mfu": "MFU %",
    "comm_mib": "sent MiB",
    "theory_mib": "formula MiB",
    "peak_mib": "peak MiB",
    "loss_last": "loss",
}


def main(parsed: Any) -> int:
    """Write the page and every figure that the files have data for, and print the table.

    Raises:
        ValueError: a file is missing or of an unknown kind, or a profile does not exist.
    """
    gc.freeze()  # collecting garbage among imported objects took a sixth of the time
    known = PROFILES | {name: profile_file.find(name) for name in parsed.hardware}
    given, out = inputs.read([Path(name) for name in parsed.rows]), Path(parsed.out)
    page.check_writable(out / "report.html", "out")
    data = inputs.drawable(given, known)
    cards = catalogue.cards(given, data, known)
    page.write(page.html(given, cards), out / "report.html")
    print(table(data[data["status"] == "ok"]))
    print(f"page: {out / 'report.html'}", flush=True)
    for note in (*catalogue.write_figures(cards, out, LOOKS[parsed.style]), *given.notes):
        print(note)
    return 0


def table(data: pd.DataFrame) -> str:
    """Return the rows as text, sorted by ranks, tokens, ring and method; at most the first 200.

    Columns without any value are left out. Times of noisy rows end in ~, which a line explains, as
    one does places.
    """
    order = ["world_size", "seq_len", "ring_parallel_size", "layout"]
    ordered = data[order].sort_values(order).index
    below = [f"and {len(data) - _SHOWN} more, on the page"] if len(data) > _SHOWN else []
    data = data.loc[ordered[:_SHOWN]]
    shown = data.assign(
        mode=data["mode"].str.replace("_", " "),
        place=spread.places(data),
        comm_mib=data["comm_bytes_total"] / 2**20,
        theory_mib=data["theory_comm_bytes_total"] / 2**20,
        peak_mib=data["peak_memory_bytes"] / 2**20,
        mfu=data["mfu"] * 100,
    )[list(_TABLE)]
    for name, form in _FORMATS.items():
        shown[name] = ["" if pd.isna(value) else form.format(value) for value in shown[name]]
    if (noisy := spread.noisy(data)).any():
        shown["step_ms_p50"] += ["~" if is_noisy else " " for is_noisy in noisy]
        below.append(f"~ {spread.NOISY}")
    if shown["place"].any():
        below.append("place: by step ms among methods; those whose rounds overlap share one")
    empty = [name for name in _TABLE if len(shown) and (shown[name] == "").all()]
    shown = shown.drop(columns=empty).rename(columns=_TABLE)
    return "\n".join([shown.to_string(index=False), *below])
