"""The balance figure: attention FLOPs of the busiest rank of a ring, divided by the mean."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.report.chart import Axis, Chart, Line, Panel
from bench.report.labels import few, methods_of, source_of

_ORDER_STYLE: dict[str, dict[str, Any]] = {
    "contiguous": {"color": "#D55E00", "marker": "o", "linestyle": "--"},
    "zigzag": {"color": "#0072B2", "marker": "^", "linestyle": "-"},
}
COLUMNS = ["attention_flops_max", "attention_flops_mean"]


def chart(rows: pd.DataFrame) -> Chart | str:
    """A line per ring order over the size of the ring; the reason if rows lack one of the orders.

    With contiguous chunks rank r of R computes 2r+1 of R² parts, so the last one (2R-1)/R times the
    mean.
    """
    no_peer = rows["method"].isin(methods_of(rows))
    rings = rows[no_peer & (rows["ring_parallel_size"] > 1) & rows[COLUMNS].notna().all(axis=1)]
    if set(rings["ring_order"]) < set(_ORDER_STYLE):
        return "no rings of both orders in these rows"
    lines = []
    for order, style in _ORDER_STYLE.items():
        ordered = rings[rings["ring_order"] == order].sort_values("ring_parallel_size")
        ordered = ordered.drop_duplicates("ring_parallel_size")
        share = ordered["attention_flops_max"] / ordered["attention_flops_mean"]
        sizes = [*ordered["ring_parallel_size"]]
        lines.append(Line(label=order, x=sizes, y=[*share], style=style, text="{:.2f}"))
    ticks = {float(n): f"{n:g}" for n in few(rings["ring_parallel_size"], 9)}
    panel = Panel(
        x=Axis(label="ranks of the ring", log=2, ticks=ticks),
        y=Axis(label="attention FLOPs, busiest rank / mean", limits=(0.9, 2.1)),
        marks=lines,
    )
    return Chart(panels=[panel], source=source_of(rings))
