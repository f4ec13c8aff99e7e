"""A peer as a run's method, ``peer:NAME``: what it can be told, and what of ours it must equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from methods.peers import plain
from methods.peers.checks import check_cell, name_of
from methods.peers.peer import Peer
from methods.peers.registry import PEERS
from odysseus.config.architecture import ARCHITECTURE_FIELDS
from odysseus.config.nested import ModelOptions
from odysseus.config.option_group import flags_of
from odysseus.config.run import RunConfig

_OF_ALL = {
    *("method", "world_size", "sequence_parallel_size", "seq_len", "micro_batch_size", "dtype"),
    *("steps", "warmup_steps", "seed", "timeout_s", "device", "expandable_segments"),
    *("hardware", "rank"),
    *("optimizer.learning_rate", "data.path", "data.repeat", "model.name_or_path"),
    *(f"model.{name}" for name in ARCHITECTURE_FIELDS),
}
"""What every peer can be told."""


def with_peer_defaults(run: RunConfig) -> RunConfig:
    """Return the run with the options that its peer always has, unless they are set; a run of this
    project's own method is unchanged."""
    name = name_of(run.method)
    if not name:
        return run
    plain_run, always = RunConfig(), _always(PEERS[name], run)
    left = {key: v for key, v in always.items() if getattr(run, key) == getattr(plain_run, key)}
    if run.model.attn_implementation == "auto":
        left["model"] = replace(run.model, attn_implementation="sdpa")
    return replace(run, **left)


def ours(run: RunConfig) -> RunConfig:
    """The run of our method that a settled peer's is held against: tiles of the loss, which a peer
    may have none of, change what is held and not what is computed."""
    return PEERS[name_of(run.method)].ours(replace(run, tiled_loss_compute="auto"))


def check(run: RunConfig) -> None:
    """Raise ValueError, naming the value and what is valid, unless a settled run asks for nothing
    but what its peer does."""
    name = name_of(run.method)
    peer = PEERS[name]
    model = ModelOptions(attn_implementation="sdpa")
    wanted = dict(flags_of(replace(RunConfig(model=model), **_always(peer, run))))
    for key, given in flags_of(run):
        if key not in (*_OF_ALL, *_own(peer)) and given != wanted[key]:
            raise ValueError(
                f"{key} = {_written(given)} is not for method = {run.method}; "
                f"valid: {_written(wanted[key])}"
            )
    one_replica = run.world_size // run.ring_parallel_size
    if run.sequence_size != one_replica:
        raise ValueError(
            f"sequence_parallel_size = {run.sequence_size} is not for method = {run.method}, which "
            f"has one replica; valid: {one_replica}"
        )
    check_cell(name, run)
    plain.check(run)


def _own(peer: Peer) -> Iterator[str]:
    """What else this one can be told: the dtype of ZeRO's reductions, the size of its tiles."""
    if peer.method == "ulysses":
        yield "seq_parallel_communication_data_type"
    if "tiled_loss_compute" in peer.overrides:
        yield "tiled_loss_bytes"


def _always(peer: Peer, run: RunConfig) -> dict[str, Any]:
    """Fields that have one value with a peer, which is not the default."""
    return {"tiled_loss_compute": False, **peer.overrides, **peer.axes(run)}


def _written(value: Any) -> str:
    """As on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)
