"""Runs of a pairwise covering array: every two options of a run occur together in one of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
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


def alike(runs: list[RunConfig]) -> list[list[RunConfig]]:
    """Group runs by what their mesh and their reference depend on."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.architecture, run.gradient_accumulation_steps].append(run)
    return [*groups.values()]
