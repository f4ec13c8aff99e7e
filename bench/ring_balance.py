"""The balance figure: how much more attention the busiest rank of a ring has than the mean."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bench.figures import source_of

_ORDER_STYLE: dict[str, dict[str, Any]] = {
    "contiguous": {"color": "#D55E00", "marker": "o", "linestyle": "--"},
    "zigzag": {"color": "#0072B2", "marker": "^", "linestyle": "-"},
}
COLUMNS = ["ring_order", "ring_parallel_size", "attention_flops_max", "attention_flops_mean"]


def figure(rows: pd.DataFrame) -> Figure | None:
    """A line for each order over the size of the ring; None without both orders.

    Contiguous chunks give place r of R 2r+1 of R² parts, so the last one (2R-1)/R of the mean.
    """
    rings = rows[rows["ring_parallel_size"] > 1]
    if set(rings["ring_order"]) < set(_ORDER_STYLE):
        return None
    drawn = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = drawn.subplots()
    for order, style in _ORDER_STYLE.items():
        of = rings[rings["ring_order"] == order].sort_values("ring_parallel_size")
        of = of.drop_duplicates("ring_parallel_size")
        share = of["attention_flops_max"] / of["attention_flops_mean"]
        axes.plot(of["ring_parallel_size"], share, label=order, **style)
        for size, value in zip(of["ring_parallel_size"], share, strict=True):
            above: dict[str, Any] = {"textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{value:.2f}", (size, value), (0, 6), **above)
    axes.set_xscale("log", base=2)
    axes.set_xticks(
        sizes := sorted(rings["ring_parallel_size"].unique()), [f"{s:g}" for s in sizes]
    )
    axes.minorticks_off()
    axes.set_ylim(0.9, 2.1)
    axes.set_xlabel("places of the ring")
    axes.set_ylabel("attention FLOPs, busiest rank / mean")
    axes.legend(frameon=False)
    drawn.text(0.995, 0.0, source_of(rings), ha="right", va="bottom", fontsize=5)
    return drawn
