"""Peers as methods of a run (``peer:NAME``): valid options, and the run to match."""

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

_COMMON_OPTIONS = {
    *("method", "world_size", "sequence_parallel_size", "seq_len", "micro_batch_size", "dtype"),
    *("steps", "warmup_steps", "seed", "timeout_s", "device", "expandable_segments"),
    *("dry_run", "hardware", "rank"),
    *("optimizer.learning_rate", "data.path", "data.repeat", "model.name_or_path"),
    *(f"model.{name}" for name in ARCHITECTURE_FIELDS),
}
"""Options that may have any value with every peer."""


def with_peer_defaults(run: RunConfig) -> RunConfig:
    """Return the run with its peer's fixed options where the run has the default.

    A run of one of this project's own methods is returned unchanged.
    """
    name = name_of(run.method)
    if not name:
        return run
    defaults, fixed = RunConfig(), _fixed_options(PEERS[name], run)
    unset = {key: v for key, v in fixed.items() if getattr(run, key) == getattr(defaults, key)}
    if run.model.attn_implementation == "auto":
        unset["model"] = replace(run.model, attn_implementation="sdpa")
    return replace(run, **unset)


def matching_run(run: RunConfig) -> RunConfig:
    """Return the run of this project's method that computes the same as a peer's run.

    The loss may be tiled even if the peer does not tile it: that changes the memory and not the
    result.

    Args:
        run: A peer's run, from :func:`with_peer_defaults`.
    """
    return PEERS[name_of(run.method)].matching_run(replace(run, tiled_loss_compute="auto"))


def check(run: RunConfig, device: str = "") -> None:
    """Raise ValueError, naming the value and what is valid, unless the peer can do the run.

    Args:
        run: A peer's run, from :func:`with_peer_defaults`.
        device: Kind of device; by default the one that the run has here.
    """
    name = name_of(run.method)
    peer = PEERS[name]
    model = ModelOptions(attn_implementation="sdpa")
    only = dict(flags_of(replace(RunConfig(model=model), **_fixed_options(peer, run))))
    for key, given in flags_of(run):
        if key not in (*_COMMON_OPTIONS, *_extra_options(peer)) and given != only[key]:
            raise ValueError(
                f"{key} = {_flag_value(given)} is not for method = {run.method}; "
                f"valid: {_flag_value(only[key])}"
            )
    one_replica = run.world_size // run.ring_parallel_size
    if run.sequence_size != one_replica:
        raise ValueError(
            f"sequence_parallel_size = {run.sequence_size} is not for method = {run.method}, which "
            f"has one replica; valid: {one_replica}"
        )
    check_cell(name, run, device)
    plain.check(run)


def _extra_options(peer: Peer) -> Iterator[str]:
    """Yield the options that may have any value with this peer, beside the common ones."""
    if peer.method == "ulysses":
        yield "seq_parallel_communication_data_type"
    if "tiled_loss_compute" in peer.overrides:
        yield "tiled_loss_bytes"


def _fixed_options(peer: Peer, run: RunConfig) -> dict[str, Any]:
    """Return the options whose only valid value with a peer is not the default."""
    return {"tiled_loss_compute": False, **peer.overrides, **peer.axes(run)}


def _flag_value(value: Any) -> str:
    """Return a value as the command line has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
