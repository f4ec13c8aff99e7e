"""Predicted step times held against measured ones, cell by cell, and the order of methods."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench import figures, rows

_CELL = ["world_size", "seq_len", "sequence_parallel_size", "ring_parallel_size", "method"]
CLEARLY = 0.10
"""A difference of measured times from which on a prediction must have the same order."""


def matched(measured: pd.DataFrame, predicted: pd.DataFrame, cluster: str) -> pd.DataFrame:
    """One row a cell that has both: its times in ms and the error, predicted / measured - 1.

    Args:
        measured: Rows of cells, numbers as numbers; `predicted` those of their dry runs.
        cluster: What both ran on, for the column of that name.

    Raises:
        ValueError: a cell is in one of the two only.
    """
    same = [column for column in rows.IDENTITY if column in measured and column in predicted]
    both = measured.merge(predicted, on=same, how="outer", suffixes=("_measured", "_predicted"))
    found = both[[*_CELL, "step_ms_p50_measured", "step_ms_p50_predicted"]].copy()
    if found.isna().any(axis=None):
        raise ValueError(f"cells of {cluster} are measured or predicted only; valid: the same ones")
    found.columns = [*_CELL, "measured_ms", "predicted_ms"]
    found["error"] = found["predicted_ms"] / found["measured_ms"] - 1
    found.insert(0, "cluster", cluster)
    found["layout"] = [figures.layout(row) for row in found.to_dict("records")]
    return found


def medians(rounds: list[pd.DataFrame]) -> pd.DataFrame:
    """Of rounds as :func:`matched` has them: each cell's median times, and the error of those."""
    cells = pd.concat(rounds).groupby(["cluster", *_CELL, "layout"], sort=False)
    found = cells[["measured_ms", "predicted_ms"]].median().reset_index()
    found["error"] = found["predicted_ms"] / found["measured_ms"] - 1
    found["rounds"] = len(rounds)
    return found


def misordered(found: pd.DataFrame) -> list[str]:
    """Pairs of layouts on one cluster at one length that clearly differ, and are predicted the
    other way round."""
    wrong = []
    for (cluster, length), cells in found.groupby(["cluster", "seq_len"], sort=False):
        for one, other in combinations(cells.to_dict("records"), 2):
            fast, slow = sorted((one, other), key=lambda cell: cell["measured_ms"])
            if slow["measured_ms"] <= (1 + CLEARLY) * fast["measured_ms"]:
                continue
            if slow["predicted_ms"] < fast["predicted_ms"]:
                wrong.append(
                    f"{cluster}, {length} tokens: {fast['layout']} before {slow['layout']}"
                )
    return wrong


def off_over_on(cells: pd.DataFrame) -> pd.Series:
    """Step times without ZeRO-3's prefetch over those with it, by method and length."""
    off = cells["zero_prefetch"].notna()  # a row says False, or nothing
    times = cells.assign(off=off).pivot(
        index=["method", "seq_len"], columns="off", values="step_ms_p50"
    )
    return times[True] / times[False]


def scatter(found: pd.DataFrame) -> Figure:
    """Predicted against measured times of all cells, and a band of 15 % around the diagonal."""
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    ends = found["measured_ms"].min() * 0.7, found["measured_ms"].max() * 1.4
    axes.fill_between(
        ends, [0.85 * x for x in ends], [1.15 * x for x in ends], color="0.9", label="within 15 %"
    )
    axes.plot(ends, ends, color="0.6", lw=0.8)
    for name in figures.layouts_of(found):
        cells = found[found["layout"] == name]
        style: dict[str, Any] = figures.style_of(name) | {"linestyle": ""}
        axes.plot(cells["measured_ms"], cells["predicted_ms"], label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="measured step (ms)", ylabel="predicted step (ms)")
    axes.legend(frameon=False, fontsize=8)
    return figure


def over_lengths(found: pd.DataFrame) -> Figure:
    """Measured (markers) and predicted (lines) times over the length, a panel a cluster."""
    clusters = list(dict.fromkeys(found["cluster"]))
    figure = Figure(figsize=(2.6 * len(clusters) + 1.4, 3.2), layout="constrained")
    panels = figure.subplots(1, len(clusters), squeeze=False)[0]
    for axes, cluster in zip(panels, clusters, strict=True):
        for name in figures.layouts_of(found):
            cells = found[(found["layout"] == name) & (found["cluster"] == cluster)]
            cells = cells.sort_values("seq_len")
            style = figures.style_of(name)
            axes.plot(cells["seq_len"], cells["predicted_ms"], label=name, **style | {"marker": ""})
            axes.plot(cells["seq_len"], cells["measured_ms"], **style | {"linestyle": ""})
        axes.set(xscale="log", yscale="log", title=cluster, xlabel="tokens")
        axes.set_xticks(sorted(set(found["seq_len"])), minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xticklabels([figures.length_label(x) for x in sorted(set(found["seq_len"]))])
    panels[0].set_ylabel("step (ms)\nlines predicted, markers measured")
    panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def crossings(found: pd.DataFrame, by_theory: Callable[[str, str], float]) -> pd.DataFrame:
    """Lengths at which two methods change places: as measured, as predicted, and where theory has
    them send the same bytes.

    Args:
        found: Cells of one cluster.
        by_theory: The length of two methods at which their bytes are the same.
    """
    changes = []
    plain = found[found["ring_parallel_size"] == 1]
    for one, other in combinations(figures.methods_of(plain), 2):
        measured, predicted = (
            _crossing(plain, one, other, column) for column in ("measured_ms", "predicted_ms")
        )
        if measured is not None:
            lengths = {"measured": measured, "predicted": predicted}
            same = {"bytes": by_theory(one, other)}
            changes.append({"methods": f"{one}, {other}"} | lengths | same)
    return pd.DataFrame(changes)


def _crossing(cells: pd.DataFrame, one: str, other: str, column: str) -> float | None:
    """Where the times of two methods cross, by power laws between lengths."""
    times = cells.pivot_table(index="seq_len", columns="method", values=column)
    ahead = np.log(times[one] / times[other])
    lengths = np.log(times.index.to_numpy(dtype=float))
    for (a, b), (x, y) in zip(pairwise(ahead), pairwise(lengths), strict=True):
        if a * b < 0:
            return float(np.exp(x + (y - x) * a / (a - b)))
    return None


def crossing_figure(changes: pd.DataFrame, title: str) -> Figure:
    """A line a pair of methods: where they change places as measured, predicted and by bytes."""
    figure = Figure(figsize=(5.6, 1.2 + 0.4 * len(changes)), layout="constrained")
    axes = figure.subplots()
    marks = {"measured": ("o", "#0072B2"), "predicted": ("x", "#D55E00"), "bytes": ("|", "black")}
    for name, (marker, color) in marks.items():
        label = "same bytes, by theory" if name == "bytes" else name
        axes.plot(changes[name], changes["methods"], marker, color=color, ms=9, label=label)
    axes.set(xlabel="tokens at which they change places", xscale="log", title=title)
    axes.set_ylim(-0.6, len(changes) - 0.4)
    plain = FuncFormatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_formatter(plain)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
