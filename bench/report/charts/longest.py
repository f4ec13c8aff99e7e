"""The figure of the longest sequences that fit, from rows of ``plan --objective longest --out``."""

from __future__ import annotations

import pandas as pd

from bench.report.cell_sets import toggles
from bench.report.chart import Axis, Bars, Chart, Line, Mark, Panel
from bench.report.labels import STACK_STYLE, layouts_of, length_label, source_of

LIMITS = {
    "GPU": {"color": "black", "marker": "o", "linestyle": "", "markersize": 3},
    "host": {
        **{"color": "black", "marker": "^", "linestyle": "", "markersize": 5},
        "markerfacecolor": "white",
    },
}
"""Marker by the memory that a longer sequence lacks."""
_UNIT = 1024


def chart(rows: pd.DataFrame) -> Chart | str:
    """A panel per number of ranks, a group of bars per layout and a bar per set of options, with a
    marker for the memory that limits it. The reason if there are no such rows."""
    longest = rows[(rows["status"] == "ok") & rows["longest_limit"].isin(list(LIMITS))]
    longest = longest[longest["ladder_toggle"] == ""]  # a ladder has a figure of its own
    if longest.empty:
        return "no row of plan --objective longest --out"
    longest = longest.assign(toggles=toggles(longest))
    longest = longest.drop_duplicates(["world_size", "layout", "toggles"], keep="last")
    sets = [*dict.fromkeys(longest["toggles"])]
    shown = sets[: len(STACK_STYLE)]
    longest = longest[longest["toggles"].isin(shown)]
    y = Axis(
        label="longest sequence (K tokens)", limits=(0, 1.15 * longest["seq_len"].max() / _UNIT)
    )
    panels = [
        _panel(f"{ranks:g} GPUs", cells, shown, y) for ranks, cells in longest.groupby("world_size")
    ]
    left = f", without {len(sets) - len(shown)} more sets of toggles" if sets != shown else ""
    wide = sum(panel.width for panel in panels) > 4
    return Chart(panels=panels, source=source_of(longest) + left, columns=1 if wide else 0)


def _panel(title: str, cells: pd.DataFrame, sets: list[str], y: Axis) -> Panel:
    order, group = layouts_of(cells), len(sets) + 1
    middle = (len(sets) - 1) / 2
    place = cells["layout"].map(order.index) * group + cells["toggles"].map(sets.index)
    length = cells["seq_len"] / _UNIT
    marks: list[Mark] = []
    for name, style in zip(sets, STACK_STYLE, strict=False):
        here = cells["toggles"] == name
        about = [
            f"{row['layout']}, {name}: {length_label(row['seq_len'])} tokens, "
            f"then {row['longest_limit']} memory is short"
            for row in cells[here].to_dict("records")
        ]
        at = [*place[here]]
        base = [0.0] * len(at)
        marks.append(
            Bars(label=name, at=at, size=[*length[here]], base=base, style=style, about=about)
        )
    for limit, style in LIMITS.items():
        here = cells["longest_limit"] == limit
        if here.any():
            label = f"{limit} memory is what limits"
            x, tops = [*place[here]], [*length[here]]
            marks.append(Line(label=label, x=x, y=tops, style=style, text="{:.0f}"))
    return Panel(
        title=title,
        x=Axis(
            label="layout",
            ticks={at * group + middle: name for at, name in enumerate(order)},
            limits=(-1.0, len(order) * group - 1.0),
            upright=len(order) > 5,
        ),
        y=y,
        marks=marks,
        width=max(1.0, 0.105 * group * len(order)),
    )
