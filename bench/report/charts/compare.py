"""The figure of a comparison: this project's time, bytes and memory divided by each peer's."""

from __future__ import annotations

from math import nan
from typing import Any

import pandas as pd

from bench.report.chart import Axis, Chart, Line, Mark, Panel
from bench.report.labels import RULE, length_label, source_of

NUMBERS = (
    *("world_size", "seq_len", "pairs", "ratio_p20", "ratio_p50", "ratio_p80"),
    *("ours_comm_bytes", "peer_comm_bytes", "ours_peak_bytes", "peer_peak_bytes"),
)
"""Columns that must be numbers in a row."""
_MOST = 8
"""Most settings of one panel."""
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_MARKERS = "os^D"
_GRID = {"color": "0.85", "linewidth": 0.6}


def chart(rows: pd.DataFrame) -> Chart | str:
    """A panel per quantity and length, with a line of points per peer: a point per number of ranks
    and dtype, left of 1 where this project takes less. Whiskers span 20 % to 80 % of the pairs. The
    reason if there are no rows."""
    rows = rows[(rows["status"] == "ok") & (rows[[*NUMBERS]] > 0).all(axis=1)]
    if rows.empty:
        return "no comparison that ended well"
    if "part" not in rows:  # older files have only whole models
        rows = rows.assign(part="model")
    rows = rows.assign(
        setting=[_setting(row) for row in rows.to_dict("records")],
        time=rows["ratio_p50"],
        sent=rows["ours_comm_bytes"] / rows["peer_comm_bytes"],
        peak=rows["ours_peak_bytes"] / rows["peer_peak_bytes"],
    )
    settings = [*dict.fromkeys(rows["setting"])]
    rows = rows[rows["setting"].isin(settings[:_MOST])]
    panels = [
        panel
        for (part, tokens), cells in rows.groupby(["part", "seq_len"], sort=False)
        for panel in _panels(cells, part, tokens, settings[:_MOST])
    ]
    pairs = " / ".join(f"{count:g}" for count in rows["pairs"].unique())
    left = len(settings) - _MOST
    more = f" {left} more settings are left out." if left > 0 else ""
    return Chart(
        panels=panels,
        source=f"{source_of(rows)}, {pairs} pairs of steps",
        note=f"Whiskers: 20 % to 80 % of the pairs.{more}",
        columns=3,
        share_y=True,
    )


def _setting(row: dict[Any, Any]) -> str:
    return f"{row['world_size']:g} ranks, {row['dtype']}"


def _panels(cells: pd.DataFrame, part: Any, tokens: Any, settings: list[str]) -> list[Panel]:
    """The panels of time, bytes and memory of one length, which share the lines of the peers."""
    peers = [*dict.fromkeys(cells["peer"].astype(str))]
    here = [name for name in settings if name in set(cells["setting"])]
    y = Axis(
        ticks={float(place): name for place, name in enumerate(peers)},
        limits=(len(peers) - 0.5, -0.5),
    )
    alone = ", blocks alone" if part == "blocks" else ""
    panels = []
    for column, quantity in (
        ("time", "step time"),
        ("sent", "bytes sent"),
        ("peak", "peak memory"),
    ):
        ends = [1.0, *cells[column]]
        ends += [*cells["ratio_p20"], *cells["ratio_p80"]] if column == "time" else []
        margin = 0.06 * (max(ends) - min(ends)) + 0.02
        limits = min(ends) - margin, max(ends) + margin
        panels.append(
            Panel(
                title=f"{quantity}, {length_label(tokens)} tokens{alone}",
                x=Axis(label="ours / peer's", limits=limits),
                y=y,
                marks=_marks(cells, column, peers, settings, here, limits),
                width=0.85,
                height=0.35 + len(peers) * (0.04 + 0.035 * len(here)),
            )
        )
    return panels


def _marks(
    cells: pd.DataFrame,
    column: str,
    peers: list[str],
    settings: list[str],
    here: list[str],
    limits: tuple[float, float],
) -> list[Mark]:
    """The line at a ratio of 1, lines between peers, and the points of each setting."""
    ends = -0.5, len(peers) - 0.5
    between = [place + 0.5 for place in range(len(peers) - 1)]
    marks: list[Mark] = [
        Line(label="", x=[1, 1], y=ends, style=RULE),
        Line(
            label="",
            x=[x for _ in between for x in (*limits, nan)],
            y=[y for place in between for y in (place, place, nan)],
            style=_GRID,
        ),
    ]
    for name in here:
        rows = cells[cells["setting"] == name]
        offset = 0.7 * ((here.index(name) + 0.5) / len(here) - 0.5)
        at = [peers.index(peer) + offset for peer in rows["peer"].astype(str)]
        number = settings.index(name)
        color = _COLORS[number % len(_COLORS)]
        if column == "time":
            spans = zip(rows["ratio_p20"], rows["ratio_p80"], strict=True)
            marks.append(
                Line(
                    label="",
                    x=[x for low, high in spans for x in (low, high, nan)],
                    y=[y for place in at for y in (place, place, nan)],
                    style={"color": color, "linewidth": 1},
                )
            )
        style = {"color": color, "marker": _MARKERS[number % 4], "linestyle": "", "markersize": 4}
        style |= {"markerfacecolor": "white"} if number >= 4 else {}
        marks.append(Line(label=name, x=[*rows[column]], y=at, style=style))
    return marks
