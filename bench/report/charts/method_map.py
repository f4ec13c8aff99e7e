"""The map of which method is fastest where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import log2
from typing import Any

import numpy as np
import pandas as pd

from bench.hardware import profile_file
from bench.planner.longest import by_method
from bench.planner.method_map import _CELL, _MOST, NOTHING
from bench.report.chart import Axis, Bars, Chart, Line, Mark, Panel
from bench.report.labels import few, length_label, style_of
from bench.theory import traffic as theory_traffic
from methods import METHODS
from odysseus.config.run import RunConfig

_CHANGE = {"color": "black", "linewidth": 2}


def chart(data: pd.DataFrame, of: str, lines: Mapping[int, list[float]] | None = None) -> Chart:
    """A square a cell in its method's colour, with how much slower the next method is.

    Args:
        of: What the map is of.
        lines: By number of GPUs, lengths to draw a line at: where theory has another method send
            the fewest bytes.
    """
    lengths, worlds = (few(data[name], _MOST) for name in _CELL[::-1])
    marks: list[Mark] = []
    for name in (*METHODS, NOTHING):
        cells = data[(data["method"] == name) & data["seq_len"].isin(lengths)]
        cells = cells[cells["world_size"].isin(worlds)].to_dict("records")
        if not cells:
            continue
        fill = style_of(name)["color"] if name in METHODS else "0.75"
        marks.append(
            Bars(
                label=name,
                at=[lengths.index(cell["seq_len"]) for cell in cells],
                size=[1.0] * len(cells),
                base=[worlds.index(cell["world_size"]) - 0.5 for cell in cells],
                style={"facecolor": fill, "edgecolor": "white"},
                thickness=1.0,
                text=[_text(cell) for cell in cells],
                about=[_about(cell) for cell in cells],
            )
        )
    for world, changes in (lines or {}).items():
        y = worlds.index(world)
        known = [log2(length) for length in lengths]
        for at in changes:
            x = float(np.interp(log2(at), known, range(len(lengths))))
            ends = [y - 0.5, y + 0.5]
            label = "another method sends fewest bytes"
            marks.append(Line(label=label, x=[x, x], y=ends, style=_CHANGE))
    panel = Panel(
        x=Axis(
            label="sequence length (tokens)",
            ticks={float(i): length_label(n) for i, n in enumerate(lengths)},
            limits=(-0.5, len(lengths) - 0.5),
        ),
        y=Axis(
            label="GPUs",
            ticks={float(i): f"{n:g}" for i, n in enumerate(worlds)},
            limits=(-0.5, len(worlds) - 0.5),
        ),
        marks=marks,
        width=0.24 * len(lengths) + 0.2,
        height=0.22 * len(worlds) + 0.2,
    )
    return Chart(panels=[panel], source=f"fastest method: {of}")


def _text(cell: Mapping[Any, Any]) -> str:
    """The method, what goes across nodes, and how much slower the next one is."""
    if pd.isna(cell["next_slower"]):
        return ""
    return f"{cell['method']} {_how(cell)}".strip() + f"\n{cell['next_slower']:+.0%}"


def _about(cell: Mapping[Any, Any]) -> str:
    of = f"{cell['world_size']:g} GPUs, {length_label(cell['seq_len'])} tokens: {cell['method']}"
    if pd.isna(cell["next_slower"]):
        return of
    return f"{of} {_how(cell)}, {cell.get('next_method')} {cell['next_slower']:.1%} slower"


def _how(row: Mapping[Any, Any]) -> str:
    """What goes across nodes."""
    if row["ring_parallel_size"] > 1:
        return f"ring {row['ring_parallel_size']:.0f}"
    replicas = row.get("data_parallel_size") or 1
    return f"x {replicas:.0f}" if replicas > 1 else ""


def changes(base: RunConfig, data: pd.DataFrame) -> dict[int, list[float]]:
    """The lines of :func:`chart` for a map of these cells.

    Raises:
        ValueError: a method cannot run on so many GPUs.
    """
    lengths = data["seq_len"]
    return {
        int(n): least_bytes_change(replace(base, world_size=int(n)), lengths.min(), lengths.max())
        for n in few(data["world_size"], _MOST)
    }


def least_bytes_change(run: RunConfig, low: float, high: float) -> list[float]:
    """Lengths between two at which another method becomes the one that sends the fewest bytes,
    where the sequence axis is a node."""
    inside = profile_file.find(run.hardware).ranks_per_node(run.world_size)
    lines = {
        name: theory_traffic.line(replace(by_method(name, run), sequence_parallel_size=inside))
        for name in METHODS
    }

    def least(length: float) -> str:
        return min(lines, key=lambda name: lines[name][0] * int(length) + lines[name][1])

    steps = np.geomspace(low, high, 400)
    return [float(b) for a, b in pairwise(steps) if least(a) != least(b)]
