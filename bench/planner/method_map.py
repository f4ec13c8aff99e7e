"""The map of methods: which is fastest at each length and number of GPUs, by dry runs.

It tries the layouts that people choose: the sequence axis inside a node, with replicas or a ring
across nodes; or the sequence axis over all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from bench.config import checks
from bench.hardware import profile_file
from bench.planner import map_file, ranking
from bench.planner.longest import by_method
from bench.pool import pool
from methods import METHODS
from odysseus.config.run import RunConfig
from odysseus.io import files

NOTHING = "nothing fits"
"""The method of a cell in which no layout fits."""


def layouts(base: RunConfig) -> Iterator[RunConfig]:
    """The runs that are tried for one cell: every method at every size of the axes."""
    world = base.world_size
    inside = profile_file.find(base.hardware).ranks_per_node(world)
    sizes = dict.fromkeys([(inside, 1), (inside, world // inside), (world, 1)])
    for (sequence, ring), method in product(sizes, METHODS):
        axes = {"sequence_parallel_size": sequence, "ring_parallel_size": ring}
        run = replace(by_method(method, base), **axes)
        if not checks.refusal(run):
            yield run


def cell(base: RunConfig) -> dict[str, Any]:
    """Return the fastest layout for one length and number of GPUs, and the slowdown of the best
    other method, as a fraction."""
    choices = ranking.ranked(layouts(base), lambda line: None)
    row: dict[str, Any] = map_file.identity(base)
    if not choices:
        return row | {"method": NOTHING}
    best = choices[0]
    others = [c for c in choices if c.run.method != best.run.method]
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


def cells(base: RunConfig, seq_lens: list[int], world_sizes: list[int], out: Path) -> pd.DataFrame:
    """Predict all cells that the file lacks, one per core at a time.

    Args:
        out: CSV file of this map; each cell is added as soon as it is known.

    Raises:
        ValueError: no layout of a cell can run, or the file is the map of another run.
    """
    wanted = [replace(base, world_size=n, seq_len=s) for n, s in product(world_sizes, seq_lens)]
    if not wanted:
        raise ValueError(
            "map has no cells; valid: at least one number in map_seq_lens and in map_world_sizes"
        )
    for run in wanted:
        if run.world_size < 1 or not any(layouts(run)):
            raise ValueError(
                f"no layout of world_size = {run.world_size}, seq_len = {run.seq_len} can run: "
                f"{checks.refusal(run) or 'no method divides its axes'}"
            )
    known = map_file.read(out, wanted[0])
    done = set(map(tuple, known[[*map_file.CELL]].to_numpy().tolist()))
    left = [run for run in wanted if (run.world_size, run.seq_len) not in done]
    with pool("spawn") as processes:
        for row in processes.map(cell, left):
            known = pd.concat([known, pd.DataFrame([row])], ignore_index=True)
            files.write(out, known.to_csv(index=False))
    return known
