"""Measured steps of scripts/studies/overlap_study.sh, relative to compute and communication.

python -m scripts.studies.overlap_summary [FOLDER]    default results/overlap
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from bench.report import draw_matplotlib, labels, spread

RATES = {"400mbit": 400e6, "200mbit": 200e6}
WAYS = {
    ("fsdp2", 1): "nothing hidden",
    ("overlap", 1): "zero_engine overlap",
    ("fsdp2", 2): "overlap_chunks 2",
    ("overlap", 2): "both",
}


def summary(folder: Path) -> pd.DataFrame:
    """One row per cell and speed of the links; `ratio` is step / max(compute, communication).

    Compute is the step of the same method with nothing hidden on links that are not throttled.
    Communication is the time that throttling adds to it. `sent_s`, the counted bytes divided by the
    speed of the link, is less, because gloo sends a reduce-scatter as an all-reduce.
    """
    compute_s = _nothing_hidden(_cells(folder / "none.csv"))
    tables = []
    for name, rate in RATES.items():
        cells = _cells(folder / f"{name}.csv")
        communication_s = _nothing_hidden(cells) - compute_s
        row = cells[["method", "way", "hardware", "git_commit"]].assign(
            link=name,
            step_s=cells["step_ms_p50"] / 1e3,
            compute_s=cells["method"].map(compute_s),
            communication_s=cells["method"].map(communication_s),
            sent_s=cells["comm_bytes_total"] * 8 / rate,
        )
        longer_s = row[["compute_s", "communication_s"]].max(axis=1)
        row["ratio"] = row["step_s"] / longer_s
        ends = spread.with_spread(cells)
        row["ratio_low"] = ends["low_ms"] / 1e3 / longer_s
        row["ratio_high"] = ends["high_ms"] / 1e3 / longer_s
        tables.append(row)
    return pd.concat(tables, ignore_index=True)


def _nothing_hidden(cells: pd.DataFrame) -> pd.Series:
    """Seconds per step by method, with nothing hidden."""
    return cells[cells["way"] == "nothing hidden"].set_index("method")["step_ms_p50"] / 1e3


def _cells(path: Path) -> pd.DataFrame:
    rows = pd.read_csv(path)
    rows = rows[rows["status"] == "ok"]
    engines, chunks = rows["zero_engine"].fillna("fsdp2"), rows["overlap_chunks"].fillna(1)
    keys = zip(engines, chunks.astype(int), strict=True)
    return rows.assign(way=[WAYS[key] for key in keys])


def figure(cells: pd.DataFrame) -> Figure:
    """One panel per speed of the links, with a bar per method and way; 1 is perfect overlap."""
    links, methods = cells["link"].unique(), labels.methods_of(cells)
    drawn = Figure(figsize=(6.4, 3.2))
    panels = drawn.subplots(1, len(links), sharey=True, squeeze=False)[0]
    for axes, link in zip(panels, links, strict=True):
        here = cells[cells["link"] == link].set_index(["method", "way"])
        for index, way in enumerate(WAYS.values()):
            at = [place + 0.2 * (index - 1.5) for place in range(len(methods))]
            bars = here.reindex([(method, way) for method in methods])
            label = way if link == links[0] else None
            axes.bar(at, bars["ratio"], width=0.18, label=label, **labels.STACK_STYLE[index])
            axes.vlines(at, bars["ratio_low"], bars["ratio_high"], colors="black", lw=0.8)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(methods)), methods)
        axes.set_title(f"links of {link.removesuffix('mbit')} Mbit/s")
    panels[0].set_ylabel("step / max(compute, communication)")
    drawn.legend(frameon=False, loc="outside upper center", ncols=len(WAYS))
    first = cells.iloc[0]
    source = f"measured on {first['hardware']}, two emulated hosts, {str(first['git_commit'])[:8]}"
    drawn.supxlabel(f"{source}. Whiskers: the spread of the steps.", fontsize=6)
    return drawn


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/overlap")
    ratios = summary(folder)
    ratios.to_csv(folder / "summary.csv", index=False, float_format="%.4f")
    table = ratios.pivot_table(index=["link", "method"], columns="way", values="ratio", sort=False)
    print(table.round(2).to_string())
    with draw_matplotlib.styled():
        draw_matplotlib.save(figure(ratios), folder / "summary")


if __name__ == "__main__":
    main()
