"""The map of methods: the fastest method at each length and number of GPUs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import Any

import numpy as np
import pandas as pd

from bench.planner import fewest_bytes
from bench.planner.map_file import CELL
from bench.planner.method_map import NOTHING
from bench.report.chart import Axis, Bars, Chart, Line, Mark, Panel
from bench.report.labels import few, length_label, peer_methods, style_of
from methods import METHODS
from odysseus.config.pairs import every_pair
from odysseus.config.run import RunConfig

_CHANGE = {"color": "black", "linewidth": 2}
_MOST = 24
"""Most lengths, and most numbers of GPUs, in the figure."""


Stretches = list[tuple[float, str]]
"""The method that sends the fewest bytes, from each length to the next."""


@dataclass(frozen=True)
class Row:
    """One row of squares.

    Attributes:
        label: Its tick, such as the number of GPUs.
        cells: The cells of the map, each a row of its file.
        stretches: Who sends the fewest bytes; empty if unknown.
        names_fewest: Whether each square names that method.
    """

    label: str
    cells: Sequence[Mapping[Any, Any]]
    stretches: Stretches
    names_fewest: bool = True

    def fewest(self, cell: Mapping[Any, Any]) -> str:
        """The method that sends the fewest bytes in a cell; empty if unknown."""
        known = reversed(self.stretches)
        return next((name for at, name in known if at <= cell["seq_len"] * 1.001), "")


def chart(data: pd.DataFrame, source: str, fewest: Mapping[int, Stretches] | None = None) -> Chart:
    """Draw one square per cell in the colour of its method, with the slowdown of the next method
    and the name of the method that sends the fewest bytes.

    Args:
        source: Model, dtype and hardware of the map, for the line below it.
        fewest: Stretches of lengths by number of GPUs; a line is drawn between two stretches.
    """
    fewest = fewest or {}
    lengths, worlds = few(data["seq_len"], _MOST), few(data["world_size"], _MOST)
    cells = data[data["seq_len"].isin(lengths)].drop_duplicates([*CELL], keep="last")
    rows = [
        Row(f"{n:g}", cells[cells["world_size"] == n].to_dict("records"), fewest.get(int(n), []))
        for n in worlds
    ]
    notes = ["+4 %: the second-best method is 4 % slower."]
    if any(fewest.values()):
        notes.append("bytes: the method that sends the fewest bytes, with the ranks of a node.")
    drawn = panel(rows, lengths, "GPUs")
    return Chart(panels=[drawn], source=f"fastest method: {source}", note=" ".join(notes))


def panel(rows: Sequence[Row], lengths: Sequence[int], label: str, title: str = "") -> Panel:
    """Return rows of squares, the first one at the bottom.

    Args:
        lengths: The columns.
        label: What the rows are.
    """
    by_method = defaultdict(list)
    for at, row in enumerate(rows):
        for cell in row.cells:
            by_method[cell["method"]].append((at, cell))
    marks: list[Mark] = []
    for name in (*every_pair(), *peer_methods(), NOTHING):
        squares = by_method[name]
        if not squares:
            continue
        fill = "0.75" if name == NOTHING else style_of(name)["color"]
        marks.append(
            Bars(
                label=name,
                at=[lengths.index(cell["seq_len"]) for _, cell in squares],
                size=[1.0] * len(squares),
                base=[at - 0.5 for at, _ in squares],
                style={"facecolor": fill, "edgecolor": "white"},
                thickness=1.0,
                text=[_text(rows[at], cell) for at, cell in squares],
                about=[_about(rows[at], cell) for at, cell in squares],
            )
        )
    known = [log2(length) for length in lengths]
    for y, row in enumerate(rows):
        for at, _ in row.stretches[1:]:
            x = float(np.interp(log2(at), known, range(len(lengths))))
            ends = [y - 0.5, y + 0.5]
            marks.append(
                Line(label="another method sends fewest bytes", x=[x, x], y=ends, style=_CHANGE)
            )
    return Panel(
        title=title,
        x=Axis(
            label="sequence length (tokens)",
            ticks={float(i): length_label(n) for i, n in enumerate(lengths)},
            limits=(-0.5, len(lengths) - 0.5),
        ),
        y=Axis(
            label=label,
            ticks={float(i): row.label for i, row in enumerate(rows)},
            limits=(-0.5, len(rows) - 0.5),
        ),
        marks=marks,
        width=0.24 * len(lengths) + 0.2,
        height=0.22 * len(rows) + 0.2,
    )


def _text(row: Row, cell: Mapping[Any, Any]) -> str:
    """The method, its layout, the slowdown of the next method, and the method that sends the fewest
    bytes."""
    fewest = row.fewest(cell) if row.names_fewest else ""
    bytes_ = [f"bytes: {fewest}"] if fewest else []
    if pd.isna(cell["next_slower"]):
        return "\n".join(bytes_)
    name = f"{cell['method']} {_layout(cell)}".strip()
    return "\n".join([name, f"{100 * cell['next_slower']:+.0f} %", *bytes_])


def _about(row: Row, cell: Mapping[Any, Any]) -> str:
    text = f"{cell['world_size']:g} GPUs, {length_label(cell['seq_len'])} tokens: {cell['method']}"
    fewest = row.fewest(cell)
    bytes_ = f"; {fewest} sends the fewest bytes" if fewest else ""
    if pd.isna(cell["next_slower"]):
        return text + bytes_
    slower = f"{cell.get('next_method')} {cell['next_slower']:.1%} slower"
    return f"{text} {_layout(cell)}, {slower}{bytes_}"


def _layout(cell: Mapping[Any, Any]) -> str:
    """The size of the tensor axis, and the layout across nodes: the size of the ring or the number
    of replicas."""
    tensor = cell.get("tensor_parallel_size")
    parts = [f"tensor {tensor:.0f}"] if tensor and tensor > 1 else []
    replicas = cell.get("data_parallel_size") or 1
    if cell["ring_parallel_size"] > 1:
        parts.append(f"ring {cell['ring_parallel_size']:.0f}")
    elif replicas > 1:
        parts.append(f"x {replicas:.0f}")
    return " ".join(parts)


def fewest_of(
    base: RunConfig, data: pd.DataFrame, methods: Sequence[str] = tuple(METHODS)
) -> dict[int, Stretches]:
    """The stretches of :func:`chart` for the map of this run.

    Args:
        methods: The methods that the map tries.
    """
    lengths = data["seq_len"]
    return {
        int(n): fewest_bytes.stretches(
            replace(base, world_size=int(n)), lengths.min(), lengths.max(), methods
        )
        for n in few(data["world_size"], _MOST)
    }
