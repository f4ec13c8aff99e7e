"""The figure of a comparison: this project's time, bytes and memory divided by each peer's."""

from __future__ import annotations

from math import nan

import pandas as pd

from bench.report.chart import Axis, Bars, Chart, Line, Mark, Panel
from bench.report.labels import RULE, STACK_STYLE, length_label, source_of

NUMBERS = (
    *("world_size", "seq_len", "pairs", "ratio_p20", "ratio_p50", "ratio_p80"),
    *("ours_comm_bytes", "peer_comm_bytes", "ours_peak_bytes", "peer_peak_bytes"),
)
"""Columns that must be numbers in a row."""
_SPREAD = {"color": "black", "marker": "|", "linestyle": "-", "linewidth": 0.8, "markersize": 4}


def chart(rows: pd.DataFrame) -> Chart | str:
    """A panel per number of ranks and length, with a bar per peer and quantity, below 1 where this
    project takes less. Whiskers span 20 % to 80 % of the pairs. The reason if there are no rows."""
    rows = rows[(rows["status"] == "ok") & (rows[[*NUMBERS]] > 0).all(axis=1)]
    if rows.empty:
        return "no comparison that ended well"
    if "part" not in rows:  # older files have only whole models
        rows = rows.assign(part="model")
    ratios = pd.DataFrame(
        {
            "step time": rows["ratio_p50"],
            "bytes sent": rows["ours_comm_bytes"] / rows["peer_comm_bytes"],
            "peak memory": rows["ours_peak_bytes"] / rows["peer_peak_bytes"],
        }
    )
    highest = max(ratios.max().max(), rows["ratio_p80"].max(), 1)
    x = Axis(label="ours / peer's", limits=(0, 1.05 * highest))
    panels = []
    for _, cells in rows.groupby(["part", "world_size", "seq_len", "dtype"], sort=False):
        first, alone = cells.iloc[0], cells["part"].iloc[0] == "blocks"
        ranks, tokens = f"{first['world_size']:g} ranks", length_label(first["seq_len"])
        places = range(len(cells))
        names = [str(peer) for peer in cells["peer"]]
        panels.append(
            Panel(
                title=f"{ranks}, {tokens} tokens, {first['dtype']}" + ", blocks alone" * alone,
                x=x,
                y=Axis(
                    ticks=dict(zip(map(float, places), names, strict=True)),
                    limits=(len(cells) - 0.5, -0.5),
                ),
                marks=_marks(cells, ratios.loc[cells.index], names),
                width=1.6,
                height=0.25 + 0.17 * len(cells),
            )
        )
    pairs = " / ".join(f"{count:g}" for count in rows["pairs"].unique())
    return Chart(panels=panels, source=f"{source_of(rows)}, {pairs} pairs of steps", columns=1)


def _marks(cells: pd.DataFrame, ratios: pd.DataFrame, names: list[str]) -> list[Mark]:
    """The bars of each quantity, the spread of the times, and the line at a ratio of 1."""
    marks: list[Mark] = []
    for index, (label, style) in enumerate(zip(ratios, STACK_STYLE, strict=False)):
        size = [*ratios[label]]
        marks.append(
            Bars(
                label=str(label),
                at=[place + 0.27 * (index - 1) for place in range(len(cells))],
                size=size,
                base=[0.0] * len(size),
                style=style,
                thickness=0.25,
                lying=True,
                text=[f"{value:.2f}" for value in size],
                about=[
                    f"{name}: {value:.3f} x its {label}"
                    for name, value in zip(names, size, strict=True)
                ],
            )
        )
    ends = zip(cells["ratio_p20"], cells["ratio_p80"], strict=True)
    return [
        *marks,
        Line(
            label="20 % to 80 % of pairs",
            x=[x for low, high in ends for x in (low, high, high)],
            y=[y for place in range(len(cells)) for y in (place - 0.27, place - 0.27, nan)],
            style=_SPREAD,
        ),
        Line(label="", x=[1, 1], y=[-0.5, len(cells) - 0.5], style=RULE),
    ]
