"""Placement of a run's axes on nodes: which cross nodes, and which GPUs NCCL then connects."""

from __future__ import annotations

import numpy as np

from odysseus.config.parallelism import Parallelism
from odysseus.config.run import RunConfig

_WORDS = {"tp": "tensor axis", "sp": "sequence axis", "ring": "ring", "dp": "replicas"}


def placement(run: RunConfig, ranks_per_node: int) -> str:
    """Describe where a run's axes are when its ranks fill nodes in order.

    Axes of size 1 are left out: they send nothing.
    """
    sizes, crosses = run.axis_sizes, _crosses(run, ranks_per_node)
    parts = [
        f"{_WORDS[axis]} {'across nodes' if crosses[axis] else 'inside a node'}"
        for axis in reversed(sizes)
        if sizes[axis] > 1
    ]
    nodes = -(-run.world_size // ranks_per_node)
    where = f"{nodes} nodes of {ranks_per_node}" if nodes > 1 else "one node"
    axes = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    return f"{run.world_size} ranks on {where} = {axes}: " + (", ".join(parts) or "no axis")


def connected(run: RunConfig, ranks_per_node: int) -> int:
    """Count the GPUs of its node that NCCL connects a rank to for sends.

    They are the ranks that it exchanges heads with, and one for a ring, where a rank sends to one
    peer and receives from another. A group that crosses nodes is left out: its ranks have 2
    channels to each other instead of 32 (``NCCL_NCHANNELS_PER_NET_PEER``;
    ncclTopoComputeP2pChannels takes the minimum over peers).
    """
    crosses = _crosses(run, ranks_per_node)
    exchanges = run.parts.attention == "ulysses" and not crosses["sp"]
    ring, _ = run.token_axes
    sends = ring > 1 and run.ring_backend != "allgather" and not crosses[run.ring_axis]
    if run.parts.mlp == "tsp" and run.sequence_size > 1 and not exchanges:
        sends = sends or not crosses["sp"]  # parts of the MLP go to the neighbour
    return exchanges * (run.sequence_size - 1) + sends


def _crosses(run: Parallelism, ranks_per_node: int) -> dict[str, bool]:
    """Whether each axis has ranks on several nodes."""
    sizes = run.axis_sizes
    node = np.arange(run.world_size).reshape(list(sizes.values())) // ranks_per_node
    return {axis: bool(np.ptp(node, axis=at).any()) for at, axis in enumerate(sizes)}
