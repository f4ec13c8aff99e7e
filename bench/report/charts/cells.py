"""Charts of the bytes and memory of cells that differ only in layout, ranks and length.

Each function takes rows with numbers as numbers and a column `layout`. It returns a chart, or the
reason why these rows have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from bench.meters.memory import KINDS
from bench.meters.traffic import PURPOSES
from bench.report.chart import Axis, Bars, Chart, Line, Mark, Panel
from bench.report.labels import (
    GIB,
    RULE,
    STACK_STYLE,
    bytes_unit,
    is_outside,
    layouts_of,
    length_label,
    ranks_label,
    source_of,
)

_Place = tuple[float, dict[Any, Any]]
"""Position of a bar, and values of its row by column."""
Left = str
"""The reason why there is no chart."""
_MISFIT = {"color": "black", "marker": "x", "linestyle": "", "markersize": 5}
_FAR = 5
"""A limit over this many times the highest bar is written below the chart instead of drawn."""


def traffic(data: pd.DataFrame) -> Chart | Left:
    """Bytes that one rank sends per step by purpose, with the formula as a line across each bar."""
    stack = {purpose: f"comm_bytes_{purpose}" for purpose in PURPOSES}
    label = "sent by a rank in a step"
    return _stacked(data[data["status"] == "ok"], stack, label, "theory_comm_bytes_total")


def memory(data: pd.DataFrame) -> Chart | Left:
    """Peak memory in one step by kind, on the rank with the most, and the limit of known
    hardware."""
    stack = {kind: f"peak_memory_{kind}_bytes" for kind in KINDS}
    return _stacked(data, stack, "peak memory of a rank")


def _stacked(
    data: pd.DataFrame, stack: dict[str, str], label: str, formula: str = ""
) -> Chart | Left:
    """A panel per number of ranks, with a group of bars per length and a bar per layout.

    Args:
        stack: Column in bytes of each part of a bar, by the part's name.
        formula: Column in bytes of a line across each bar; without one, the line is the hardware's
            memory.
    """
    columns = list(stack.values())
    needed = [*columns, *filter(None, [formula])]
    usable = data[columns].notna().all(axis=1)
    if formula:  # a method from outside has none
        usable &= data[formula].notna() | data["method"].map(is_outside)
    data = data[usable]
    if data.empty:
        return f"no row has {', '.join(needed)}"
    totals = data[columns].sum(axis=1)
    limit, name = _limit(data) if not formula else (0, "")
    source = source_of(data)
    if limit > _FAR * totals.max():  # with its line the bars would have no height
        source += f", {name} has {limit / GIB:.4g} GiB for tensors"
        limit = 0
    highest = max(totals.max(), limit)
    divisor, unit = bytes_unit(highest)
    y = Axis(label=f"{label} ({unit})", limits=(0, 1.18 * max(highest, 1) / divisor))
    panels = []
    for ranks, rows in data.groupby("world_size"):
        places = list(_places(rows, ["status", *needed]))
        marks: list[Mark] = [*_parts_of_bars(places, stack, divisor, unit)]
        at = [place for place, _ in places]
        if formula and any(not pd.isna(row[formula]) for _, row in places):
            heights = [row[formula] / divisor for _, row in places]
            marks.append(rule_across("formula (total)", at, heights))
        marks += _crosses(places, columns, divisor)
        if limit:
            ends = [at[0] - 0.8, at[-1] + 0.8]
            text = f"{name} has for tensors: {limit / divisor:.4g} {unit}"
            marks.append(Line(label=text, x=ends, y=[limit / divisor] * 2, style=RULE))
        panels.append(_bar_panel(ranks_label(ranks), places, y, marks))
    wide = sum(panel.width for panel in panels) > 4
    return Chart(panels=panels, source=source, columns=1 if wide else 0)


def _parts_of_bars(
    places: list[_Place], stack: dict[str, str], divisor: int, unit: str
) -> Iterator[Bars]:
    """Yield the bars of each part of a stack, each on top of the parts before it."""
    at = [place for place, _ in places]
    below = [0.0] * len(at)
    for style, (part, column) in zip(STACK_STYLE, stack.items(), strict=False):
        size = [row[column] / divisor for _, row in places]
        about = [
            f"{row['layout']}, {length_label(row['seq_len'])} tokens: {part} {s:.4g} {unit}"
            for (_, row), s in zip(places, size, strict=True)
        ]
        yield Bars(label=part, at=at, size=size, base=below, style=style, about=about)
        below = [b + s for b, s in zip(below, size, strict=True)]


def _crosses(places: list[_Place], columns: list[str], divisor: int) -> list[Mark]:
    """Crosses on top of the bars of cells that do not fit; no mark if all fit."""
    misfits = [(place, row) for place, row in places if row["status"] != "ok"]
    if not misfits:
        return []
    tops = [sum(row[column] / divisor for column in columns) for _, row in misfits]
    x = [place for place, _ in misfits]
    return [Line(label="does not fit (GPU or host)", x=x, y=tops, style=_MISFIT)]


def _bar_panel(title: str, places: list[_Place], y: Axis, marks: list[Mark]) -> Panel:
    """A panel with the layout below each bar and the length above each group."""
    return Panel(
        title=title,
        x=Axis(
            label="layout, by sequence length (tokens)",
            ticks={place: row["layout"] for place, row in places},
            upright=True,
        ),
        y=y,
        marks=marks,
        headings=_headings(places),
        width=max(0.45, 0.055 * (places[-1][0] + 2)),
    )


def rule_across(label: str, at: Sequence[float], heights: Sequence[float]) -> Line:
    """A short line across each bar."""
    x = [point for place in at for point in (place - 0.5, place + 0.5, place + 0.5)]
    y = [point for height in heights for point in (height, height, nan)]
    return Line(label=label, x=x, y=y, style=RULE)


def _limit(data: pd.DataFrame) -> tuple[int, str]:
    """Return the bytes that the hardware of these rows has for tensors, and its name without
    folders; 0 and empty without a profile."""
    name, limit = data[["hardware", "usable_bytes"]].iloc[0]
    return (0, "") if pd.isna(limit) else (int(limit), Path(name).name)


def _places(rows: pd.DataFrame, columns: list[str]) -> Iterator[_Place]:
    """Yield position and values of the bar of each row: a group of bars per length, and in it one
    bar per layout. The values are those in `columns`, the layout and the length."""
    at, order = 0.0, layouts_of(rows)
    for _, group in rows[["layout", "seq_len", *columns]].groupby("seq_len"):
        for row in sorted(group.to_dict("records"), key=lambda row: order.index(row["layout"])):
            yield at, row
            at += 1
        at += 1


def _headings(places: list[_Place]) -> dict[float, str]:
    """The text of each length, at the middle of its bars."""
    groups: dict[float, list[float]] = {}
    for place, row in places:
        groups.setdefault(row["seq_len"], []).append(place)
    return {sum(at) / len(at): length_label(length) for length, at in groups.items()}
