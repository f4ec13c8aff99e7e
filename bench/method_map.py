"""The map of methods: which is fastest at every length and number of GPUs, by dry runs.

Layouts are those that people choose: the sequence axis inside a node, and across nodes replicas or
a ring; or the sequence axis over everything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise, product
from math import log2
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from bench import figures, hardware, options, ranking, rows, theory
from bench.plan import by_method
from methods import METHODS
from odysseus.config import RunConfig

_CELL = ["world_size", "seq_len"]
NOTHING = "nothing fits"


def layouts(base: RunConfig) -> Iterator[RunConfig]:
    """The runs that are tried for one cell."""
    world = base.world_size
    inside = min(world, hardware.find(base.hardware).gpus_a_node)
    sizes = dict.fromkeys([(inside, 1), (inside, world // inside), (world, 1)])
    for (sequence, ring), method in product(sizes, METHODS):
        axes = {"sequence_parallel_size": sequence, "ring_parallel_size": ring}
        run = replace(by_method(method, base), **axes)
        if not options.refusal(run):
            yield run


def cell(base: RunConfig) -> dict[str, Any]:
    """The fastest layout of one length on so many GPUs, and how much slower the best other method
    is."""
    found = ranking.ranked(layouts(base), lambda line: None)
    row: dict[str, Any] = identity(base)
    if not found:
        return row | {"method": NOTHING}
    best = found[0]
    others = [c for c in found if c.run.method != best.run.method]
    return row | {
        "method": best.run.method,
        "sequence_parallel_size": best.run.sequence_size,
        "ring_parallel_size": best.run.ring_parallel_size,
        "data_parallel_size": best.run.data_parallel_size,
        "tricks": best.tricks,
        **best.parts_ms,
        "tokens_per_s_per_gpu": best.tokens_per_s_per_gpu,
        "next_method": others[0].run.method if others else "",
        "next_slower": best.tokens_per_s_per_gpu / others[0].tokens_per_s_per_gpu - 1
        if others
        else None,
    }


def identity(base: RunConfig) -> dict[str, Any]:
    """What makes a cell this cell; all but the last two are the whole map's."""
    known = rows.identity(base)
    names = ("model", "attn_implementation", "micro_batch_size", "gradient_accumulation_steps")
    names += ("dtype", "activation_checkpointing", "activation_checkpoint_cpu_offload")
    names += ("tiled_mlp_compute", "optimizer_offload", "parameter_offload", "hardware")
    return {name: known[name] for name in (*names, *_CELL)}


def cells(base: RunConfig, seq_lens: list[int], world_sizes: list[int], out: Path) -> pd.DataFrame:
    """Every cell, as many at a time as there are cores; a file of them keeps what it has.

    Args:
        out: CSV file of this map.

    Raises:
        ValueError: no layout of a cell can run, or the file is another map's.
    """
    wanted = [replace(base, world_size=n, seq_len=s) for n, s in product(world_sizes, seq_lens)]
    for run in wanted:
        if run.world_size < 1 or not any(layouts(run)):
            raise ValueError(
                f"no layout of world_size = {run.world_size}, seq_len = {run.seq_len} can run; "
                "valid: lengths that divide by 2 x world_size"
            )
    known = _read(out, wanted[0])
    done = set(map(tuple, known[_CELL].to_numpy().tolist()))
    left = [run for run in wanted if (run.world_size, run.seq_len) not in done]
    with ProcessPoolExecutor(os.cpu_count(), get_context("forkserver")) as pool:
        for row in pool.map(cell, left):
            known = pd.concat([known, pd.DataFrame([row])], ignore_index=True)
            known.to_csv(out, index=False)
    return known


def _read(out: Path, base: RunConfig) -> pd.DataFrame:
    """The cells of a file, if it is this map's."""
    mine = identity(base)
    if not out.exists():
        return pd.DataFrame(columns=list(mine))
    found = rows.read(out)
    for name in mine:
        others = set(found[name]) - {str(mine[name])} if name in found else {"no such column"}
        if name not in _CELL and others:
            raise ValueError(
                f"map: {out} has {name} = {', '.join(sorted(others))}, not {mine[name]}; "
                "valid: a new name, or the same flags"
            )
    return pd.read_csv(out)


def figure(data: pd.DataFrame, base: RunConfig) -> Figure:
    """A square a cell in its method's colour, with how much slower the next method is; lines where
    theory has another method send the fewest bytes."""
    lengths, worlds = (sorted(data[name].unique()) for name in ("seq_len", "world_size"))
    drawn = Figure(
        figsize=(0.75 * len(lengths) + 2.6, 0.5 * len(worlds) + 1.4), layout="constrained"
    )
    axes = drawn.subplots()
    for row in data.to_dict("records"):
        x, y = lengths.index(row["seq_len"]), worlds.index(row["world_size"])
        style: dict[str, Any] = {"facecolor": "white", "hatch": "///", "edgecolor": "0.8"}
        if row["method"] in METHODS:
            style = {"facecolor": figures.style_of(row["method"])["color"], "edgecolor": "white"}
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **style))
        if pd.notna(row.get("next_slower")):
            text = f"{row['next_slower']:+.0%}\n{_how(row)}"
            axes.text(x, y, text, ha="center", va="center", fontsize=6, color="white")
    for y, world in enumerate(worlds):
        for at in least_bytes_change(replace(base, world_size=int(world)), lengths[0], lengths[-1]):
            x = float(
                np.interp(log2(at), [log2(length) for length in lengths], range(len(lengths)))
            )
            axes.plot([x, x], [y - 0.5, y + 0.5], color="black", lw=2)
    axes.set(
        xlim=(-0.5, len(lengths) - 0.5),
        ylim=(-0.5, len(worlds) - 0.5),
        xlabel="tokens",
        ylabel="GPUs",
    )
    axes.set_xticks(range(len(lengths)), [figures.length_label(length) for length in lengths])
    axes.set_yticks(range(len(worlds)), [str(n) for n in worlds])
    axes.grid(visible=False)
    present = [name for name in METHODS if name in set(data["method"])]
    handles = [Patch(facecolor=figures.style_of(n)["color"], label=n) for n in present]
    if NOTHING in set(data["method"]):
        handles.append(Patch(facecolor="white", edgecolor="0.8", hatch="///", label=NOTHING))
    axes.legend(handles=handles, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(f"fastest method, {base.model.label}, {base.hardware} (dry run)", fontsize=9)
    return drawn


def _how(row: Mapping[Any, Any]) -> str:
    """What goes across nodes."""
    if row["ring_parallel_size"] > 1:
        return f"ring {row['ring_parallel_size']:.0f}"
    return f"x {row['data_parallel_size']:.0f}" if row["data_parallel_size"] > 1 else ""


def least_bytes_change(run: RunConfig, low: float, high: float) -> list[float]:
    """Lengths between two at which another method becomes the one that sends the fewest bytes,
    where the sequence axis is a node."""
    inside = min(run.world_size, hardware.find(run.hardware).gpus_a_node)
    lines = {
        name: theory.line(replace(by_method(name, run), sequence_parallel_size=inside))
        for name in METHODS
    }

    def least(length: float) -> str:
        return min(lines, key=lambda name: lines[name][0] * int(length) + lines[name][1])

    steps = np.geomspace(low, high, 400)
    return [float(b) for a, b in pairwise(steps) if least(a) != least(b)]
