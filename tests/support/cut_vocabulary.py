"""Runs that cut the embedding or the head by vocabulary: every two options occur together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from methods import METHODS
from odysseus.config.run import RunConfig
from tests.support.covering import covering_array
from tests.support.runs import MODEL, RUN, VARIANTS
from tests.support.toggles import AHEAD, LOSS_TILES

MESHES: dict[str, dict[str, int]] = {
    "2": {"world_size": 2},
    "2 x ring 2": {"world_size": 4, "ring_parallel_size": 2},
    "2 x replica 2": {"world_size": 4, "sequence_parallel_size": 2},
    "4": {"world_size": 4},
}
UNEVEN = replace(MODEL, vocab_size=509)
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "cut": {name: {"vocab_parallel": name} for name in ("embedding", "head")}
    | {"true": {"vocab_parallel": True}},
    "loss": {
        "whole": {"tiled_loss_compute": False},
        "fused": LOSS_TILES,
        "checkpoint": LOSS_TILES | {"tiled_loss_engine": "checkpoint"},
    },
    "model": {
        "plain": {"model": MODEL},
        "uneven rows": {"model": UNEVEN},
        "tied": {"model": replace(VARIANTS["tied_llama3"], vocab_size=509)},
        "one kv head": {"model": VARIANTS["kv_heads_fewer_than_ranks"]},
    },
    "blocks": {
        "plain": {},
        "recomputed": {"activation_checkpointing": True, "tiled_mlp_compute": True},
        "chunks": {"gradient_accumulation_steps": 2},
    },
    "zero": {
        "plain": {},
        "buckets": {"reduce_bucket_size": 1000},
        "overlap": AHEAD,
        "offload": {"parameter_offload": "cpu"},
    },
}
"""Options of a run and, by name, the changes that they mean."""


def allowed(row: Mapping[str, str]) -> bool:
    """Whether a run may have these values: tied parts are cut together."""
    return row.get("model") != "tied" or row.get("cut", "true") == "true"


@cache
def runs() -> list[RunConfig]:
    """Return the runs of a pairwise covering array over method, mesh and options."""
    factors = {name: [*values] for name, values in OPTIONS.items()}
    factors |= {"method": [*METHODS], "mesh": [*MESHES]}
    found = []
    for row in covering_array(factors, allowed):
        changes: dict[str, Any] = dict(MESHES[row["mesh"]])
        for name, values in OPTIONS.items():
            changes |= values[row[name]]
        found.append(replace(RUN, method=row["method"], seq_len=40, **changes))
    return found


def of_mesh(name: str) -> list[RunConfig]:
    """Return the runs on one of :data:`MESHES`."""
    sizes = replace(RUN, **MESHES[name]).axis_sizes
    return [run for run in runs() if run.axis_sizes == sizes]
