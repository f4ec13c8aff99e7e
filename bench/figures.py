"""The figures of a report: one style, units on every axis, colours that any eye can tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from bench.memory import KINDS
from bench.traffic import PURPOSES
from methods import METHODS

# Okabe and Ito's palette (jfly.uni-koeln.de/color): distinct without colour vision.
_METHOD_STYLE: dict[str, dict[str, Any]] = {
    "tp": {"color": "#D55E00", "marker": "o", "linestyle": "-"},
    "tp_sp": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "ulysses": {"color": "#0072B2", "marker": "^", "linestyle": "-."},
    "odysseus": {"color": "#009E73", "marker": "D", "linestyle": ":"},
}
_PURE_RING = {"color": "#CC79A7", "marker": "*", "linestyle": (0, (3, 1, 1, 1, 1, 1))}
STACK_STYLE: list[dict[str, Any]] = [
    {"facecolor": "#0072B2", "hatch": ""},
    {"facecolor": "#E69F00", "hatch": "//"},
    {"facecolor": "#009E73", "hatch": ".."},
    {"facecolor": "#CC79A7", "hatch": "xx"},
    {"facecolor": "#56B4E9", "hatch": "--"},
]
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.4,
    "svg.hashsalt": "odysseus",
    "svg.fonttype": "none",
    "figure.dpi": 150,
}
MIB = 2**20


def draw_all(data: pd.DataFrame, folder: Path) -> list[str]:
    """Write every figure as PNG and SVG; a line for each written or left out, and why.

    Args:
        data: Rows with numbers as numbers. Of rows that differ only in what no figure shows
            (say, the dtype), the last is drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells = ["layout", "world_size", "seq_len"]
    data = data.assign(layout=[layout(row) for row in data.to_dict("records")])
    shown = data.drop_duplicates(cells, keep="last").sort_values(cells)
    notes = []
    if len(shown) < len(data):
        repeated = len(data) - len(shown)
        notes.append(f"{repeated} rows left out: same layout, ranks and length as a later one")
    for name, (draw, needed) in _FIGURES.items():
        absent = [c for c in needed if c not in shown or shown[c].isna().all()]
        if absent:
            notes.append(f"{name}: left out, no {', '.join(absent)} in these rows")
            continue
        with styled():
            save(draw(shown), folder / name)
        notes.append(f"{name}: {folder / name}.png and .svg")
    return notes


def styled() -> AbstractContextManager[None]:
    """The one style, for whatever is drawn inside."""
    return mpl.rc_context(_STYLE)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and SVG, whose suffixes are added to the path."""
    with styled():
        figure.savefig(f"{path}.png")
        figure.savefig(f"{path}.svg", metadata={"Date": None})


def overlay(steps: pd.DataFrame, title: str) -> Figure:
    """Loss and gradient norm of a reference and a candidate, their difference on its own axis."""
    with styled():
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True, height_ratios=[2, 1])
        for name, label, (above, below) in (
            ("loss", "loss (nats/token)", panels[:, 0]),
            ("grad_norm", "gradient norm", panels[:, 1]),
        ):
            above.plot(
                steps["step"], steps[f"{name}_reference"], "#E69F00", lw=4, label="reference"
            )
            above.plot(steps["step"], steps[name], "#0072B2", lw=1.2, label="sequence split")
            above.set_ylabel(label)
            above.legend(frameon=False)
            difference = steps[f"{name}_difference"]
            below.plot(steps["step"], difference, "k.", ms=4)
            if (difference > 0).any():  # all may be 0, of which a logarithmic axis has none
                below.set_yscale("log")
            below.set_ylabel("relative difference")
            below.set_xlabel("step")
        figure.suptitle(title, fontsize=9)
        return figure


def throughput(data: pd.DataFrame) -> Figure:
    """Tokens per second over sequence length, a panel for each number of ranks."""
    figure, panels = _panels(data, "throughput (tokens/s)")
    for axes, rows in panels:
        for name in layouts_of(rows):
            line = rows[rows["layout"] == name]
            axes.plot(line["seq_len"], line["tokens_per_s"], label=name, **style_of(name))
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(rows["seq_len"].unique()))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: length_label(x)))
        axes.minorticks_off()
        axes.set_ylim(0, 1.06 * data["tokens_per_s"].max())
    handles = [Line2D([], [], label=name, **style_of(name)) for name in layouts_of(data)]
    return _finish(figure, data, handles, "sequence length (tokens)", bottom=0.2)


def traffic(data: pd.DataFrame) -> Figure:
    """Bytes that one rank sends in a step by purpose, and the closed form as a line across."""
    columns = {purpose: f"comm_bytes_{purpose}" for purpose in PURPOSES}
    return _stacked(data, columns, "sent by a rank in a step (MiB)", "theory_comm_bytes_total")


def memory(data: pd.DataFrame) -> Figure:
    """Peak memory of the highest rank over a step by kind, a bar for each cell."""
    columns = {kind: f"peak_memory_{kind}_bytes" for kind in KINDS}
    return _stacked(data, columns, "peak memory of a rank (MiB)")


_FIGURES = {
    "throughput": (throughput, ["tokens_per_s"]),
    "traffic": (traffic, ["comm_bytes_total", "theory_comm_bytes_total"]),
    "memory": (memory, ["peak_memory_activations_bytes"]),
}


def _stacked(
    data: pd.DataFrame, columns: dict[str, str], unit: str, formula: str | None = None
) -> Figure:
    figure, panels = _panels(data, unit, by_layouts=True)
    highest = max(data[columns.values()].sum(axis=1)) / MIB
    panels[0][0].set_ylim(0, 1.15 * highest)  # room for the lengths
    for axes, rows in panels:
        places, labels = [], []
        for at, row in _bars(rows):
            bottom = 0.0
            for style, column in zip(STACK_STYLE, columns.values(), strict=False):
                height = row[column] / MIB
                axes.bar(at, height, 0.8, bottom, edgecolor="white", linewidth=0.3, **style)
                bottom += height
            if formula is not None:
                axes.hlines(row[formula] / MIB, at - 0.5, at + 0.5, color="black", lw=1.2)
            places.append(at)
            labels.append(row["layout"])
        axes.set_xticks(places, labels, rotation=90, fontsize=7)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="x", visible=False)
        group = len(layouts_of(rows)) + 1
        for number, length in enumerate(sorted(rows["seq_len"].unique())):
            middle = number * group + (group - 2) / 2
            axes.annotate(
                length_label(length),
                (middle, 0.99),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="top",
            )
    handles: list[Any] = [
        Patch(label=name, edgecolor="white", **style)
        for style, name in zip(STACK_STYLE, columns, strict=False)
    ]
    if formula is not None:
        handles.append(Line2D([], [], color="black", lw=1.2, label="formula (total)"))
    return _finish(figure, data, handles, "layout, by sequence length (tokens)")


def _panels(
    data: pd.DataFrame, unit: str, by_layouts: bool = False
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """One panel for each number of ranks, sharing the y axis; all alike or by their layouts."""
    ranks = sorted(data["world_size"].unique())
    figure = Figure(figsize=(1.2 + 3.4 * len(ranks), 3.6))
    layouts = [data[data["world_size"] == count]["layout"].nunique() for count in ranks]
    widths = [number + 2 for number in layouts] if by_layouts else None
    panels = figure.subplots(1, len(ranks), sharey=True, squeeze=False, width_ratios=widths)[0]
    panels[0].set_ylabel(unit)
    for axes, count in zip(panels, ranks, strict=True):
        axes.set_title(f"{int(count)} ranks" if count > 1 else "1 rank", fontsize=9)
    return figure, [
        (axes, data[data["world_size"] == count]) for axes, count in zip(panels, ranks, strict=True)
    ]


def _finish(
    figure: Figure, data: pd.DataFrame, handles: list[Any], along: str, bottom: float = 0.34
) -> Figure:
    figure.supxlabel(along, fontsize=9, y=0.03)
    figure.legend(
        handles=handles, loc="upper center", ncols=min(5, len(handles)), frameon=False, fontsize=8
    )
    figure.text(0.995, 0.01, source_of(data), ha="right", va="bottom", fontsize=6)
    figure.subplots_adjust(
        left=0.9 / figure.get_figwidth(), right=0.985, top=0.82, bottom=bottom, wspace=0.06
    )
    return figure


def _bars(rows: pd.DataFrame) -> Iterator[tuple[int, pd.Series]]:
    """(place, row): lengths as groups of bars, layouts within."""
    order = layouts_of(rows)
    for number, length in enumerate(sorted(rows["seq_len"].unique())):
        for _, row in rows[rows["seq_len"] == length].iterrows():
            yield number * (len(order) + 1) + order.index(row["layout"]), row


def layout(row: Mapping[Any, Any]) -> str:
    """A row's method and the ring that crosses it; all methods are one in a pure ring."""
    ring = int(row.get("ring_parallel_size") or 1)  # rows from before there were rings have none
    if ring == 1:
        return row["method"]
    name = f"ring {ring}"
    name += " contiguous" * (row.get("ring_order") == "contiguous")
    backend = row.get("ring_backend") or "native"
    name += f" {backend}" * (backend != "native")
    return name if row["sequence_parallel_size"] == 1 else f"{row['method']} x {name}"


def layouts_of(data: pd.DataFrame) -> list[str]:
    """The layouts that rows are of: by ring size, then in the order of the methods, pure last."""

    def place(name: str) -> tuple[int, int, str]:
        method, size, how = _parts(name)
        return size, [*METHODS, ""].index(method), how

    return sorted(dict.fromkeys(data["layout"]), key=place)


def style_of(name: str) -> dict[str, Any]:
    """The method's own; with a ring across it hollow, the larger the ring the smaller."""
    method, size, _ = _parts(name)
    style = _METHOD_STYLE.get(method, _PURE_RING)
    if size == 1:
        return style
    return style | {"markerfacecolor": "white", "markersize": 8 - size.bit_length(), "alpha": 0.8}


def _parts(name: str) -> tuple[str, int, str]:
    """Method (empty in a pure ring), places of the ring, and how they go round, of a layout."""
    method, ring, rest = name.partition("ring ")
    size, _, how = rest.partition(" ")
    return method.removesuffix(" x "), int(size) if ring else 1, how


def methods_of(data: pd.DataFrame) -> list[str]:
    """The methods that rows are of, in the order of the table."""
    return [name for name in METHODS if (data["method"] == name).any()]


def length_label(tokens: float) -> str:
    """A sequence length for an axis: 4K, 1000."""
    return f"{tokens / 1024:g}K" if tokens % 1024 == 0 else f"{tokens:g}"


def source_of(data: pd.DataFrame) -> str:
    """What the numbers are of: model, dtype, how they came about and where."""
    columns = [c for c in ("model", "dtype", "mode", "hardware") if c in data]
    return ", ".join(" / ".join(dict.fromkeys(map(str, data[c]))) for c in columns)
