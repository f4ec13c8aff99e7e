"""Runs of a pairwise covering array: every two options of a run occur together in one of them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from odysseus.config.run import RunConfig
from tests.support.covering import covering_array
from tests.support.runs import RUN

MESHES: dict[str, dict[str, int]] = {
    "2": {"world_size": 2},
    "2 x ring 2": {"world_size": 4, "ring_parallel_size": 2},
    "2 x replica 2": {"world_size": 4, "sequence_parallel_size": 2},
    "4": {"world_size": 4},
}
MIXED, PURE = ("fp32", "bf16"), (("fp32",), ("bf16",))
"""Dtypes that runs have in turn: in the default suite, and in the whole one."""
Options = Mapping[str, Mapping[str, dict[str, Any]]]
"""Options of a run and, by name, the changes that they mean."""


def crossed(options: Options, allowed: Callable[[Mapping[str, str]], bool]) -> list[RunConfig]:
    """Return runs that hold every allowed pair of two options' values, on all meshes."""
    options = {**options, "mesh": MESHES}
    rows = covering_array({name: [*values] for name, values in options.items()}, allowed)
    found = []
    for row in rows:
        changes: dict[str, Any] = {"seq_len": 48}
        for name, values in options.items():
            changes |= values[row[name]]
        found.append(replace(RUN, **changes))
    return found


def on_mesh(runs: list[RunConfig], name: str) -> list[RunConfig]:
    """Return the runs on one of :data:`MESHES`."""
    sizes = replace(RUN, **MESHES[name]).axis_sizes
    return [run for run in runs if run.axis_sizes == sizes]


def in_dtypes(runs: list[RunConfig], dtypes: Sequence[str]) -> list[RunConfig]:
    """Return the runs, each with the next of some dtypes."""
    return [replace(run, dtype=dtype) for run, dtype in zip(runs, itertools.cycle(dtypes))]


def alike(runs: list[RunConfig]) -> list[list[RunConfig]]:
    """Group runs by what their mesh and their reference depend on."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.architecture, run.gradient_accumulation_steps].append(run)
    return [*groups.values()]
