"""The map of methods: which is fastest at each length and number of GPUs, by dry runs.

It tries the layouts that people choose: the sequence axis inside a node, with replicas or a ring
across nodes; or the sequence axis over all ranks. A tensor axis, where asked for, takes a part of
the ranks of the sequence axis.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from bench.config import checks
from bench.hardware import profile_file
from bench.planner import map_file, ranking
from bench.planner.longest import by_method
from bench.planner.map_file import Tried
from bench.pool import Here, as_done
from odysseus.config.run import RunConfig
from odysseus.io import files

NOTHING = "nothing fits"
"""The method of a cell in which no layout fits."""


def layouts(base: RunConfig, tried: Tried = Tried()) -> Iterator[RunConfig]:
    """The runs that are tried for one cell: every method at every size of the axes."""
    world = base.world_size
    inside = profile_file.find(base.hardware).ranks_per_node(world)
    sizes = dict.fromkeys([(inside, 1), (inside, world // inside), (world, 1)])
    for (ranks, ring), tensor, method in product(sizes, tried.tensor_sizes, tried.methods):
        if tensor > 1 and (ranks % tensor or ranks == tensor):
            continue  # a tensor axis alone is tp_sp
        axes = {
            "tensor_parallel_size": tensor,
            "sequence_parallel_size": ranks // tensor,
            "ring_parallel_size": ring,
        }
        run = replace(by_method(method, base), **axes)
        if not checks.refusal(run):
            yield run


def cell(base: RunConfig, choices: list[ranking.Choice], tried: Tried = Tried()) -> dict[str, Any]:
    """Return the fastest layout for one length and number of GPUs, and the slowdown of the best
    other method, as a fraction.

    Args:
        choices: The layouts that fit, fastest first.
    """
    row: dict[str, Any] = map_file.identity(base, tried)
    if not choices:
        return row | {"method": NOTHING}
    best = choices[0]
    others = [c for c in choices if c.run.method != best.run.method]
    return row | {
        "method": best.run.method,
        "tensor_parallel_size": best.run.tensor_parallel_size,
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


def wanted(
    base: RunConfig, seq_lens: list[int], world_sizes: list[int], tried: Tried
) -> list[RunConfig]:
    """Return the cells of a map, each as a run.

    Raises:
        ValueError: there is none, or no layout of one can run.
    """
    cells = [replace(base, world_size=n, seq_len=s) for n, s in product(world_sizes, seq_lens)]
    if not cells:
        raise ValueError(
            "map has no cells; valid: at least one number in map_seq_lens and in map_world_sizes"
        )
    for run in cells:
        if run.world_size < 1 or not any(layouts(run, tried)):
            raise ValueError(
                f"no layout of world_size = {run.world_size}, seq_len = {run.seq_len} can run: "
                f"{checks.refusal(run) or 'no method divides its axes'}"
            )
    return cells


class Cells:
    """The cells of a map: those in its file, and those that are left to predict.

    Args:
        runs: All cells, see :func:`wanted`.
        out: CSV file of this map; each cell is added as soon as it is known.
        tried: What is tried in each cell.

    Attributes:
        known: The cells so far.
        tasks: The layouts that are left to try, each with the number of its cell in `runs`.

    Raises:
        ValueError: the file is the map of another run.
    """

    def __init__(self, runs: list[RunConfig], out: Path, tried: Tried = Tried()) -> None:
        self.out, self.tried, self.runs = out, tried, runs
        self.known = map_file.read(out, runs[0], tried)
        done = set(map(tuple, self.known[[*map_file.CELL]].to_numpy().tolist()))
        self.tasks = [
            (number, run)
            for number, base in enumerate(runs)
            if (base.world_size, base.seq_len) not in done
            for run in layouts(base, tried)
        ]

    def predict(
        self, report: Callable[[RunConfig, str], None], executor: Executor | None = None
    ) -> pd.DataFrame:
        """Predict the cells that are left, in turn, and return all.

        Args:
            report: Called with each layout that was tried, and its outcome in one line.
            executor: Where layouts are tried; by default in this process.
        """
        left = Counter(number for number, _ in self.tasks)
        choices: dict[int, dict[int, ranking.Choice]] = defaultdict(dict)
        tried = as_done(executor or Here(), ranking.fitting, [run for _, run in self.tasks])
        for task, choice in tried:
            number, run = self.tasks[task]
            fastest = max((c.tokens_per_s_per_gpu for c in choices[number].values()), default=0.0)
            report(run, ranking.in_words(run, choice, fastest))
            if choice:
                choices[number][task] = choice
            left[number] -= 1
            if not left[number]:
                self._add(number, [choices[number][at] for at in sorted(choices[number])])
        return self.known

    def _add(self, number: int, choices: list[ranking.Choice]) -> None:
        row = cell(self.runs[number], ranking.fastest_first(choices), self.tried)
        self.known = pd.concat([self.known, pd.DataFrame([row])], ignore_index=True)
        files.write(self.out, self.known.to_csv(index=False))
