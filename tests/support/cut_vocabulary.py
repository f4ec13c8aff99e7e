"""Runs that cut the embedding or the head by vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from methods import METHODS
from odysseus.config.run import RunConfig
from tests.support.crossed import crossed
from tests.support.runs import MODEL, VARIANTS
from tests.support.toggles import AHEAD, LOSS_TILES

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "method": {name: {"method": name} for name in METHODS},
    "cut": {name: {"vocab_parallel": name} for name in ("embedding", "head")}
    | {"true": {"vocab_parallel": True}},
    "loss": {
        "whole": {"tiled_loss_compute": False},
        "fused": LOSS_TILES,
        "checkpoint": LOSS_TILES | {"tiled_loss_engine": "checkpoint"},
    },
    "model": {
        "plain": {"model": MODEL},
        "uneven rows": {"model": replace(MODEL, vocab_size=509)},
        "tied": {"model": replace(VARIANTS["tied_llama3"], vocab_size=509)},
        "one kv head": {"model": VARIANTS["kv_heads_fewer_than_ranks"]},
    },
    "blocks": {
        "plain": {},
        "recomputed": {"activation_checkpointing": True, "tiled_mlp_compute": True},
        "two micro steps": {"gradient_accumulation_steps": 2},
    },
    "zero": {
        "plain": {},
        "buckets": {"reduce_bucket_size": 1000},
        "overlap": AHEAD,
        "offload": {"parameter_offload": "cpu"},
    },
}


def allowed(row: Mapping[str, str]) -> bool:
    """Whether a run may have these values: tied parts are cut together."""
    return row.get("model") != "tied" or row.get("cut", "true") == "true"


@cache
def runs() -> list[RunConfig]:
    """Return the runs of :data:`OPTIONS`."""
    return crossed(OPTIONS, allowed)
