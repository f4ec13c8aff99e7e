"""Predicted step times held against measured ones, cell by cell, and the order of methods."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench import rows
from bench.report import draw_matplotlib, labels
from bench.report.chart import Axis, Chart, Line, Panel

_CELL = ["world_size", "seq_len", "sequence_parallel_size", "ring_parallel_size", "method"]
_DIAGONAL = {"color": "0.6", "linestyle": "-", "linewidth": 0.8}
_BAND = {"color": "0.6", "linestyle": ":", "linewidth": 0.8}
HOW = "measured", "predicted"
"""Columns of times are these and `_ms`."""
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
        cell = found[found.isna().any(axis="columns")].iloc[0].to_dict()
        raise ValueError(
            f"cells of {cluster} are measured or predicted only, {cell} first; valid: the same ones"
        )
    found.columns = [*_CELL, "measured_ms", "predicted_ms"]
    found["error"] = found["predicted_ms"] / found["measured_ms"] - 1
    found.insert(0, "cluster", cluster)
    found["layout"] = [labels.layout(row) for row in found.to_dict("records")]
    return found


def of_rows(data: pd.DataFrame) -> pd.DataFrame:
    """As :func:`matched`, of those cells among rows that are both measured and predicted; the
    cluster says by which profile and on what."""
    timed = data[(data["status"] == "ok") & data["step_ms_p50"].notna()]
    same = [*rows.IDENTITY, "device", "layout"]
    both = timed[timed["mode"] == "measured"].merge(
        timed[timed["mode"] == "dry_run"], on=same, suffixes=("_measured", "_predicted")
    )
    return both.assign(
        cluster=both["hardware_predicted"] + ", measured on " + both["hardware_measured"],
        measured_ms=both["step_ms_p50_measured"],
        predicted_ms=both["step_ms_p50_predicted"],
    )


def medians(rounds: pd.DataFrame) -> pd.DataFrame:
    """Each cell over its rounds: the medians of its times and of each round's error, which need not
    be the error of the medians, as the pace of a machine changes; the least and greatest error.

    Args:
        rounds: Rows as :func:`matched` has them, and the round in a column of that name.
    """
    cells = rounds.groupby(["cluster", *_CELL, "layout"], sort=False)
    found = cells[["measured_ms", "predicted_ms", "error"]].median().reset_index()
    for name, of in (("error_min", "min"), ("error_max", "max"), ("rounds", "count")):
        found[name] = cells["error"].agg(of).to_numpy()
    return found


def misordered(rounds: pd.DataFrame) -> list[str]:
    """Pairs of layouts on one cluster at one length that clearly differ, and are predicted the
    other way round: by the median, over rounds that have both, of what one takes over the other.

    Args:
        rounds: As of :func:`medians`.
    """
    wrong = []
    for (cluster, length), cells in rounds.groupby(["cluster", "seq_len"], sort=False):
        measured, predicted = (
            cells.pivot(index="round", columns="layout", values=f"{how}_ms") for how in HOW
        )
        for one, other in combinations(measured, 2):
            in_fact, foretold = (
                np.log((ms[other] / ms[one]).median()) for ms in (measured, predicted)
            )
            if abs(in_fact) > np.log1p(CLEARLY) and in_fact * foretold <= 0:
                fast, slow = (one, other) if in_fact > 0 else (other, one)
                wrong.append(f"{cluster}, {length} tokens: {fast} before {slow}")
    return wrong


def off_over_on(cells: pd.DataFrame) -> pd.Series:
    """Step times without ZeRO-3's prefetch over those with it, by method and length."""
    off = cells["zero_prefetch"].notna()  # a row says False, or nothing
    times = cells.assign(off=off).pivot(
        index=["method", "seq_len"], columns="off", values="step_ms_p50"
    )
    return times[True] / times[False]


def scatter(found: pd.DataFrame) -> Chart:
    """Predicted against measured times of all cells, and a band of 15 % around the diagonal."""
    ends = [found["measured_ms"].min() * 0.7, found["measured_ms"].max() * 1.4]
    lines = [Line(label="as measured", x=ends, y=ends, style=_DIAGONAL)]
    for share in (0.85, 1.15):
        y = [share * x for x in ends]
        lines.append(Line(label="15 % off", x=ends, y=y, style=_BAND))
    for name in labels.layouts_of(found):
        cells = found[found["layout"] == name]
        style = labels.style_of(name) | {"linestyle": ""}
        x, y = [*cells["measured_ms"]], [*cells["predicted_ms"]]
        lines.append(Line(label=name, x=x, y=y, style=style))
    panel = Panel(
        x=Axis(label="measured step (ms)", log=10),
        y=Axis(label="predicted step (ms)", log=10),
        marks=lines,
        width=1.3,
        height=1.3,
    )
    return Chart(panels=[panel], source="; ".join(dict.fromkeys(found["cluster"])))


def over_lengths(found: pd.DataFrame) -> Chart:
    """Measured (markers) and predicted (lines) times over the length, a panel a cluster."""
    panels = []
    x = Axis(label="sequence length (tokens)", log=2, ticks=labels.lengths_ticks(found["seq_len"]))
    for cluster, of in found.groupby("cluster", sort=False):
        lines = []
        for name in labels.layouts_of(of):
            cells = of[of["layout"] == name].sort_values("seq_len")
            at, style = [*cells["seq_len"]], labels.style_of(name)
            for column, without in (("predicted_ms", "marker"), ("measured_ms", "linestyle")):
                label = f"{name}, {column.removesuffix('_ms')}"
                shown = style | {without: ""}
                lines.append(Line(label=label, x=at, y=[*cells[column]], style=shown))
        y = Axis(label="step (ms)", log=10)
        panels.append(Panel(title=str(cluster), x=x, y=y, marks=lines))
    return Chart(
        panels=panels,
        source="lines predicted by dry runs, markers measured",
        share_y=False,
        columns=3,
    )


def crossings(found: pd.DataFrame, by_theory: Callable[[str, str], float]) -> pd.DataFrame:
    """Lengths at which two methods change places: as measured, as predicted, and where theory has
    them send the same bytes.

    Args:
        found: Cells of one cluster.
        by_theory: The length of two methods at which their bytes are the same.
    """
    changes = []
    plain = found[found["ring_parallel_size"] == 1]
    for one, other in combinations(labels.methods_of(plain), 2):
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
    figure = Figure(figsize=(5.6, 1.2 + 0.4 * len(changes)))
    axes = figure.subplots()
    marks = {"measured": ("o", "#0072B2"), "predicted": ("x", "#D55E00"), "bytes": ("|", "black")}
    for name, (marker, color) in marks.items():
        label = "same bytes, by theory" if name == "bytes" else name
        axes.plot(changes[name], changes["methods"], marker, color=color, ms=9, label=label)
    axes.set(xlabel="tokens at which they change places", xscale="log", title=title)
    axes.set_ylim(-0.6, len(changes) - 0.4)
    draw_matplotlib.log_ticks(axes.xaxis)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
