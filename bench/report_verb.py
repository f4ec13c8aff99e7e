"""``python -m bench report``: rows in, figures and a table out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from bench import ablation, figures, options, ring_balance, rows

_TABLE = {
    "layout": "layout",
    "world_size": "ranks",
    "seq_len": "tokens",
    "step_ms_p50": "step ms",
    "tokens_per_s": "tokens/s",
    "mfu": "MFU %",
    "comm_mib": "sent MiB",
    "theory_mib": "formula MiB",
    "peak_mib": "peak MiB",
    "loss_last": "loss",
}

_STUDIES: dict[str, tuple[Any, str]] = {
    "ablation": (ablation, f"ladder of {', '.join(ablation.LADDER)}"),
    "balance": (ring_balance, "rings of both orders"),
}


def main(arguments: list[str]) -> int:
    """Draw every figure whose columns are there, print the table.

    Raises:
        ValueError: a rows file is missing or is not one.
    """
    parser = options.parser("report", "Figures (PNG and SVG) and a table from CSV rows.")
    parser.add_argument(
        "--rows", nargs="+", default=["results/runs.csv"], help="CSV files of rows."
    )
    parser.add_argument("--out", type=str, default="results/report", help="Folder of figures.")
    parsed = options.parse(parser, arguments)
    data = load([Path(name) for name in parsed.rows])
    print(table(data))
    out = Path(parsed.out)
    for note in figures.draw_all(data, out):
        print(note)
    for name in _STUDIES:
        print(draw_study(name, data, out / name))
    return 0


def draw_study(name: str, data: pd.DataFrame, path: Path) -> str:
    """Draw a study if the rows have one; a line that says so or why not."""
    study, wanted = _STUDIES[name]
    if missing := [c for c in study.COLUMNS if c not in data or data[c].isna().all()]:
        return f"{name}: left out, no {', '.join(missing)} in these rows"
    with figures.styled():
        drawn = study.figure(data)
    if drawn is None:
        return f"{name}: left out, these rows are no {wanted}"
    figures.save(drawn, path)
    return f"{name}: {path}.png and .svg"


def load(paths: list[Path]) -> pd.DataFrame:
    """All rows whose status is ok, numbers as numbers; of a cell measured twice, the last."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"rows: no such file: {', '.join(missing)}; valid: CSV files of `run`")
    frames = [rows.read(path) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        absent = {"method", "status", "seq_len"} - set(frame.columns)
        if absent:
            raise ValueError(f"rows: {path} has no column {', '.join(sorted(absent))}")
    data = pd.concat(frames, ignore_index=True)
    data["key"] = [rows.key(row) for row in data.to_dict("records")]
    data = data[data["status"] == "ok"].drop_duplicates("key", keep="last")
    if data.empty:
        raise ValueError("rows: none has status ok, so there is nothing to draw")
    numeric = data.apply(pd.to_numeric, errors="coerce")
    return data.where(numeric.isna(), numeric)


def table(data: pd.DataFrame) -> str:
    """The rows side by side, sorted by ranks, tokens, ring and method."""
    shown = data.assign(
        comm_mib=data["comm_bytes_total"] / 2**20,
        theory_mib=data["theory_comm_bytes_total"] / 2**20,
        peak_mib=data["peak_memory_bytes"] / 2**20,
        mfu=data["mfu"] * 100,
        layout=[figures.layout(row) for row in data.to_dict("records")],
    )
    order = ["world_size", "seq_len", "ring_parallel_size", "layout"]
    shown = shown.sort_values(order)[list(_TABLE)]
    formats = {"step_ms_p50": "{:.0f}", "tokens_per_s": "{:.0f}", "loss_last": "{:.4f}"}
    formats |= dict.fromkeys(("comm_mib", "theory_mib"), "{:.2f}")
    formats |= dict.fromkeys(("peak_mib", "mfu"), "{:.1f}")
    for name, form in formats.items():
        shown[name] = [form.format(value) for value in shown[name]]
    return shown.rename(columns=_TABLE).to_string(index=False)
