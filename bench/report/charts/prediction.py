"""Charts of predicted step times against measured ones."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from bench.report import draw_matplotlib, labels, spread
from bench.report.chart import Axis, Chart, Line, Panel

_DIAGONAL = {"color": "0.6", "linestyle": "-", "linewidth": 0.8}
_BAND = {"color": "0.6", "linestyle": ":", "linewidth": 0.8}
_OFF = 0.10
"""Error of the dotted lines."""
_PREFIXES = ("links of ", "links ")
"""Beginnings of the names of emulated clusters."""


def scatter(times: pd.DataFrame) -> Chart:
    """Predicted over measured time of each cell, and beside it the errors by cluster, with lines at
    10 %."""
    ends = [times["measured_ms"].min() * 0.7, times["measured_ms"].max() * 1.4]
    off = f"{_OFF:.0%} off".replace("%", " %")
    lines = [Line(label="as measured", x=ends, y=ends, style=_DIAGONAL)]
    for share in (1 - _OFF, 1 + _OFF):
        y = [share * x for x in ends]
        lines.append(Line(label=off, x=ends, y=y, style=_BAND))
    for name in labels.layouts_of(times):
        cells = times[times["layout"] == name]
        style = labels.style_of(name) | {"linestyle": ""}
        x, y = [*cells["measured_ms"]], [*cells["predicted_ms"]]
        lines.append(Line(label=name, x=x, y=y, style=style))
    lines += spread.noisy_marks(times, [*times["measured_ms"]], [*times["predicted_ms"]])
    panel = Panel(
        x=Axis(label="measured step (ms)", log=10),
        y=Axis(label="predicted step (ms)", log=10),
        marks=lines,
        width=1.3,
        height=1.3,
    )
    return Chart(
        panels=[panel, _errors(times)],
        source=_source([*dict.fromkeys(times["cluster"])]),
        note=_note(times),
        share_y=False,
    )


def _errors(times: pd.DataFrame) -> Panel:
    """The error of each cell in percent, by cluster, in the order of the layouts."""
    clusters = [*dict.fromkeys(times["cluster"])][:12]
    order = labels.layouts_of(times)
    error = 100 * (times["predicted_ms"] / times["measured_ms"] - 1)
    ends = [-0.5, len(clusters) - 0.5]
    lines = [Line(label="as measured", x=ends, y=[0, 0], style=_DIAGONAL)]
    sizes = (-100 * _OFF, 100 * _OFF)
    lines += [Line(label="", x=ends, y=[size] * 2, style=_BAND) for size in sizes]
    for name in order:
        here = (times["layout"] == name) & times["cluster"].isin(clusters)
        beside = 0.7 * ((order.index(name) + 0.5) / len(order) - 0.5)
        x = [clusters.index(cluster) + beside for cluster in times.loc[here, "cluster"]]
        style = labels.style_of(name) | {"linestyle": ""}
        spans = []
        if {"error_min", "error_max"} <= {*times}:
            least, greatest = (100 * times.loc[here, f"error_{end}"] for end in ("min", "max"))
            spans = [*zip(least, greatest, strict=True)]
        lines.append(Line(label=name, x=x, y=[*error[here]], style=style, spans=spans))
    names = _short(clusters)
    is_links = all(cluster.startswith(_PREFIXES) for cluster in clusters)
    return Panel(
        x=Axis(
            label="emulated links" if is_links else "cluster",
            ticks={float(at): name for at, name in enumerate(names)},
            limits=(-0.6, len(clusters) - 0.4),
            upright=sum(map(len, names)) > 60,
        ),
        y=Axis(label="error of the prediction (%)"),
        marks=lines,
        width=1.3,
        height=1.3,
    )


def _short(clusters: list[str]) -> list[str]:
    """The names of clusters without the parts that all of them share."""
    shared = _shared(clusters)
    names = [", ".join(part for part in c.split(", ") if part not in shared) for c in clusters]
    for prefix in _PREFIXES:
        names = [name.removeprefix(prefix) for name in names]
    return names


def _shared(clusters: list[str]) -> list[str]:
    """The parts that the names of all clusters share; none of a single cluster."""
    others = [set(cluster.split(", ")) for cluster in clusters[1:]]
    parts = clusters[0].split(", ") if others else []
    return [part for part in parts if all(part in other for other in others)]


def _source(clusters: list[str]) -> str:
    """The part that all clusters share, as the axis has the rest; else their names."""
    return ", ".join(_shared(clusters)) or "; ".join(clusters)


def _note(times: pd.DataFrame) -> str:
    """Median and largest error, and the meaning of whiskers."""
    error = (times["predicted_ms"] / times["measured_ms"] - 1).abs()
    sizes = f"Error: median {100 * error.median():.1f} %, largest {100 * error.max():.1f} %."
    if "spread" in times:
        return f"{sizes} {spread.note(times)}".strip()
    if "error_min" in times and (times["error_min"] < times["error_max"]).any():
        return f"{sizes} Whiskers: least to greatest error of the rounds."
    return sizes


def over_lengths(times: pd.DataFrame) -> Chart:
    """Measured (markers) and predicted (lines) times over the length, one panel per cluster."""
    panels = []
    x = Axis(label="sequence length (tokens)", log=2, ticks=labels.lengths_ticks(times["seq_len"]))
    for cluster, group in times.groupby("cluster", sort=False):
        lines = []
        for name in labels.layouts_of(group):
            cells = group[group["layout"] == name].sort_values("seq_len")
            at, style = [*cells["seq_len"]], labels.style_of(name)
            predicted, measured = [*cells["predicted_ms"]], [*cells["measured_ms"]]
            lines += [
                Line(label=f"{name}, predicted", x=at, y=predicted, style=style | {"marker": ""}),
                Line(
                    label=f"{name}, measured",
                    x=at,
                    y=measured,
                    style=style | {"linestyle": ""},
                    spans=_measured_spans(cells),
                ),
            ]
        lines += spread.noisy_marks(group, [*group["seq_len"]], [*group["measured_ms"]])
        y = Axis(label="step (ms)", log=10)
        panels.append(Panel(title=str(cluster), x=x, y=y, marks=lines))
    return Chart(
        panels=panels,
        source="lines predicted by dry runs, markers measured",
        note=_note(times),
        share_y=False,
        columns=2 if len(panels) == 4 else 3,
    )


def _measured_spans(cells: pd.DataFrame) -> list[tuple[float, float]]:
    """The ends of the measured times; none if the rows have only one of them."""
    if not {"error_min", "error_max"} <= {*cells}:
        return []
    low, high = (cells["predicted_ms"] / (1 + cells[f"error_{end}"]) for end in ("max", "min"))
    return [*zip(low, high, strict=True)]


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
