"""Runs of a pairwise covering array: every two options of a run occur together in one of them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bench.config import checks
from bench.theory import traffic as theory_traffic
from odysseus.config.run import RunConfig
from tests.support import dry_run, toggles
from tests.support.covering import covering_array
from tests.support.marks import slow
from tests.support.ranks import run_ranks
from tests.support.runs import MODEL, RUN, VARIANTS
from tests.support.traffic import measured_columns

MESHES: dict[str, dict[str, int]] = {
    "2": {"world_size": 2},
    "2 x ring 2": {"world_size": 4, "ring_parallel_size": 2},
    "2 x replica 2": {"world_size": 4, "sequence_parallel_size": 2},
    "4": {"world_size": 4},
}
TENSOR_MESHES: dict[str, dict[str, int]] = {
    "tp 2": {"world_size": 2, "tensor_parallel_size": 2},
    "2 x tp 2": {"world_size": 4, "tensor_parallel_size": 2},
    "ring 2 x tp 2": {"world_size": 4, "ring_parallel_size": 2, "tensor_parallel_size": 2},
    "replica 2 x tp 2": {
        "world_size": 4,
        "sequence_parallel_size": 1,
        "tensor_parallel_size": 2,
    },
    "tp 4": {"world_size": 4, "tensor_parallel_size": 4},
}
"""Meshes with a tensor axis of its own."""
_SIZES = {**MESHES, **TENSOR_MESHES}
FEW = "2", "2 x ring 2"
"""Meshes of the default suite: a sequence axis alone, and one beside a ring."""
EVERY = [*FEW, *(slow(mesh) for mesh in MESHES if mesh not in FEW)]
"""Values of a parametrised mesh."""
DRY_RUNS = [("2", 4), *(slow(mesh, 1) for mesh in MESHES)]
"""Arguments of :func:`check_dry_runs`: by default every fourth run on two ranks."""
Options = Mapping[str, Mapping[str, dict[str, Any]]]
"""Options of a run and, by name, the changes that they mean."""
SHARED: Options = {
    "vocabulary": {"whole": {}, "cut": {"vocab_parallel": True}},
    "model": {
        "plain": {"model": MODEL},
        "one kv head": {"model": VARIANTS["kv_heads_fewer_than_ranks"]},
        "qwen": {"model": VARIANTS["qwen"]},
        "biased": {
            "model": replace(MODEL, mlp_bias=True, attention_bias=True, attention_output_bias=True)
        },
    },
    "recompute": {"off": {}, "on": {"activation_checkpointing": True}},
    "zero": {"plain": {}, "overlap": toggles.AHEAD, "buckets": {"reduce_bucket_size": 1000}},
}
"""Options that every way to spread a block has."""


def crossed(
    options: Options,
    allowed: Callable[[Mapping[str, str]], bool],
    meshes: Mapping[str, dict[str, int]] = MESHES,
) -> list[RunConfig]:
    """Return runs that hold every allowed pair of two options' values, on all meshes."""
    options = {**options, "mesh": meshes}
    rows = covering_array({name: [*values] for name, values in options.items()}, allowed)
    found = []
    for row in rows:
        changes: dict[str, Any] = {"seq_len": 48}
        for name, values in options.items():
            changes |= values[row[name]]
        found.append(replace(RUN, **changes))
    return found


def _on_mesh(runs: list[RunConfig], name: str) -> list[RunConfig]:
    """Return the runs on one of the meshes."""
    sizes = replace(RUN, **_SIZES[name]).axis_sizes
    return [run for run in runs if run.axis_sizes == sizes]


def _in_dtypes(runs: list[RunConfig]) -> list[RunConfig]:
    """Return the runs in fp32 and bf16 in turn."""
    dtypes = itertools.cycle(("fp32", "bf16"))
    return [replace(run, dtype=dtype) for run, dtype in zip(runs, dtypes, strict=False)]


def _alike(runs: list[RunConfig]) -> list[list[RunConfig]]:
    """Group runs by what their mesh and their reference depend on."""
    groups = defaultdict(list)
    for run in runs:
        experts = run.parts.mlp == "expert", run.expert_ranks
        groups[run.architecture, run.gradient_accumulation_steps, experts].append(run)
    return [*groups.values()]


def check_parity(runs: list[RunConfig], mesh: str) -> None:
    """Check that loss, every gradient and updated weights equal those of one process."""
    here = _on_mesh(runs, mesh)
    for run in here:
        checks.check(run)
    for same in _alike(here):
        toggles.check_all(same)


def on_mesh_in_dtypes(runs: list[RunConfig], mesh: str) -> list[RunConfig]:
    """Return the runs on one of the meshes, in fp32 and bf16 in turn."""
    return _in_dtypes(_on_mesh(runs, mesh))


def check_bytes(runs: list[RunConfig], mesh: str) -> None:
    """Check that every rank sends what the closed forms say."""
    here = on_mesh_in_dtypes(runs, mesh)
    for rank, measured in enumerate(run_ranks(measured_columns, here[0].world_size, here)):
        for run, columns in zip(here, measured, strict=True):
            assert columns == theory_traffic.step_traffic(run, rank).columns, (rank, run)


def check_dry_runs(
    runs: list[RunConfig],
    mesh: str,
    step: int,
    on_rank: Callable[[list[RunConfig]], list[dict[str, Any]]] = dry_run.measured,
) -> None:
    """Check that dry runs of the first and the last rank count what real ranks do.

    Args:
        step: Every how many runs one is counted.
        on_rank: Like :func:`tests.support.dry_run.measured`.
    """
    for same in _alike(_in_dtypes(_on_mesh(runs, mesh)[::step])):
        dry_run.check_all(same, [0, same[0].world_size - 1], on_rank)
