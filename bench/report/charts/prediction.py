"""Charts of predicted step times against measured ones."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from bench.report import draw_matplotlib, labels
from bench.report.chart import Axis, Chart, Line, Panel

_DIAGONAL = {"color": "0.6", "linestyle": "-", "linewidth": 0.8}
_BAND = {"color": "0.6", "linestyle": ":", "linewidth": 0.8}


def scatter(times: pd.DataFrame) -> Chart:
    """Predicted over measured time of each cell, with a band of 15 % around the diagonal."""
    ends = [times["measured_ms"].min() * 0.7, times["measured_ms"].max() * 1.4]
    lines = [Line(label="as measured", x=ends, y=ends, style=_DIAGONAL)]
    for share in (0.85, 1.15):
        y = [share * x for x in ends]
        lines.append(Line(label="15 % off", x=ends, y=y, style=_BAND))
    for name in labels.layouts_of(times):
        cells = times[times["layout"] == name]
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
    return Chart(panels=[panel], source="; ".join(dict.fromkeys(times["cluster"])))


def over_lengths(times: pd.DataFrame) -> Chart:
    """Measured (markers) and predicted (lines) times over the length, one panel per cluster."""
    panels = []
    x = Axis(label="sequence length (tokens)", log=2, ticks=labels.lengths_ticks(times["seq_len"]))
    for cluster, group in times.groupby("cluster", sort=False):
        lines = []
        for name in labels.layouts_of(group):
            cells = group[group["layout"] == name].sort_values("seq_len")
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


def crossing_figure(changes: pd.DataFrame, title: str) -> Figure:
    """One line per pair of methods, with the lengths at which the faster one changes: measured,
    predicted, and where both send the same bytes."""
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
