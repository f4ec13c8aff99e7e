"""The figure of ladders: the longest sequence of each method as toggles are added one by one, from
rows of ``plan --ladder true --out``."""

from __future__ import annotations

import pandas as pd

from bench.report.chart import Axis, Bars, Chart, Line, Mark, Panel
from bench.report.charts.longest import LIMITS
from bench.report.labels import TOGGLE_NAMES, layouts_of, length_label, source_of, style_of

_UNIT = 1024
_MOST = 8
"""Most methods, and most numbers of ranks, in a figure."""


def chart(rows: pd.DataFrame) -> Chart | str:
    """A panel per number of ranks and layout with a bar per rung, and a marker for the memory that
    limits it. The reason if there are no such rows."""
    rungs = rows[(rows["status"] == "ok") & (rows["ladder_toggle"] != "")]
    rungs = rungs[rungs["longest_limit"].isin(list(LIMITS))]
    if rungs.empty:
        return "no row of plan --ladder true --out"
    top = 1.2 * rungs["seq_len"].max() / _UNIT
    y = Axis(label="longest sequence (K tokens)", limits=(0, top))
    panels = []
    for ranks, of_ranks in list(rungs.groupby("world_size"))[:_MOST]:
        for layout in layouts_of(of_ranks)[:_MOST]:
            ladder = of_ranks[of_ranks["layout"] == layout].sort_values("seq_len")
            ladder = ladder.drop_duplicates("ladder_toggle", keep="last")
            panels.append(_panel(f"{layout}, {ranks:g} GPUs", layout, ladder, y))
    return Chart(panels=panels, source=source_of(rungs), columns=4)


def _panel(title: str, layout: str, ladder: pd.DataFrame, y: Axis) -> Panel:
    names = [
        name if name == "none" else f"+ {TOGGLE_NAMES.get(name, name)}"
        for name in ladder["ladder_toggle"]
    ]
    length = ladder["seq_len"] / _UNIT
    at = pd.Series(range(len(ladder)), index=ladder.index, dtype=float)
    about = [
        f"{name}: {length_label(tokens)} tokens, then {limit} memory is short"
        for name, tokens, limit in zip(
            names, ladder["seq_len"], ladder["longest_limit"], strict=True
        )
    ]
    fill = {"facecolor": style_of(layout)["color"]}
    base = [0.0] * len(ladder)
    marks: list[Mark] = [
        Bars(label="", at=[*at], size=[*length], base=base, style=fill, about=about)
    ]
    for limit, style in LIMITS.items():
        here = ladder["longest_limit"] == limit
        if here.any():
            label = f"{limit} memory is what limits"
            x, tops = [*at[here]], [*length[here]]
            marks.append(Line(label=label, x=x, y=tops, style=style, text="{:.0f}"))
    ticks = {float(number): name for number, name in enumerate(names)}
    x = Axis(label="toggle added", ticks=ticks, limits=(-0.7, len(names) - 0.3), upright=True)
    return Panel(title=title, x=x, y=y, marks=marks, height=1.2)
