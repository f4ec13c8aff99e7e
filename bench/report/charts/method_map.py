"""The map of methods: the fastest method at each length and number of GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import log2
from typing import Any

import numpy as np
import pandas as pd

from bench.planner import fewest_bytes
from bench.planner.method_map import NOTHING
from bench.report.chart import Axis, Bars, Chart, Line, Mark, Panel
from bench.report.labels import few, length_label, style_of
from methods import METHODS
from odysseus.config.run import RunConfig

_CHANGE = {"color": "black", "linewidth": 2}
_MOST = 24
"""Most lengths, and most numbers of GPUs, in the figure."""


Stretches = list[tuple[float, str]]
"""The method that sends the fewest bytes, from each length to the next."""


def chart(data: pd.DataFrame, source: str, fewest: Mapping[int, Stretches] | None = None) -> Chart:
    """Draw one square per cell in the colour of its method, with the slowdown of the next method
    and the name of the method that sends the fewest bytes.

    Args:
        source: Model, dtype and hardware of the map, for the line below it.
        fewest: Stretches of lengths by number of GPUs; a line is drawn between two stretches.
    """
    fewest = fewest or {}
    lengths, worlds = few(data["seq_len"], _MOST), few(data["world_size"], _MOST)
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
                text=[_text(cell, _fewest(cell, fewest)) for cell in cells],
                about=[_about(cell, _fewest(cell, fewest)) for cell in cells],
            )
        )
    for world, stretches in fewest.items():
        y = worlds.index(world)
        known = [log2(length) for length in lengths]
        for at, _ in stretches[1:]:
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
    notes = ["+4 %: the second-best method is 4 % slower."]
    if fewest:
        notes.append("bytes: the method that sends the fewest bytes, with the ranks of a node.")
    return Chart(panels=[panel], source=f"fastest method: {source}", note=" ".join(notes))


def _fewest(cell: Mapping[Any, Any], fewest: Mapping[int, Stretches]) -> str:
    """The method that sends the fewest bytes in a cell; empty if unknown."""
    stretches = fewest.get(int(cell["world_size"]), [])
    return next((name for at, name in reversed(stretches) if at <= cell["seq_len"] * 1.001), "")


def _text(cell: Mapping[Any, Any], fewest: str) -> str:
    """The method, its layout across nodes, the slowdown of the next method, and the method that
    sends the fewest bytes."""
    bytes_ = [f"bytes: {fewest}"] if fewest else []
    if pd.isna(cell["next_slower"]):
        return "\n".join(bytes_)
    name = f"{cell['method']} {_across_nodes(cell)}".strip()
    return "\n".join([name, f"{100 * cell['next_slower']:+.0f} %", *bytes_])


def _about(cell: Mapping[Any, Any], fewest: str) -> str:
    text = f"{cell['world_size']:g} GPUs, {length_label(cell['seq_len'])} tokens: {cell['method']}"
    bytes_ = f"; {fewest} sends the fewest bytes" if fewest else ""
    if pd.isna(cell["next_slower"]):
        return text + bytes_
    slower = f"{cell.get('next_method')} {cell['next_slower']:.1%} slower"
    return f"{text} {_across_nodes(cell)}, {slower}{bytes_}"


def _across_nodes(row: Mapping[Any, Any]) -> str:
    """The layout across nodes: the size of the ring or the number of replicas."""
    if row["ring_parallel_size"] > 1:
        return f"ring {row['ring_parallel_size']:.0f}"
    replicas = row.get("data_parallel_size") or 1
    return f"x {replicas:.0f}" if replicas > 1 else ""


def fewest_of(base: RunConfig, data: pd.DataFrame) -> dict[int, Stretches]:
    """The stretches of :func:`chart` for the map of this run.

    Raises:
        ValueError: a method cannot run on one of the numbers of GPUs.
    """
    lengths = data["seq_len"]
    return {
        int(n): fewest_bytes.stretches(
            replace(base, world_size=int(n)), lengths.min(), lengths.max()
        )
        for n in few(data["world_size"], _MOST)
    }
