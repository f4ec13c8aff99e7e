"""Which axes of a run stay inside a node and which cross nodes, in one line."""

from __future__ import annotations

import numpy as np

from odysseus.config import RunConfig

_WORDS = {"sp": "sequence axis", "ring": "ring", "dp": "replicas"}


def placement(run: RunConfig, ranks_a_node: int) -> str:
    """Where a run's axes lie when its ranks fill nodes in order.

    Axes of size 1 are left out: they send nothing.
    """
    sizes = {"dp": run.data_parallel_size, "ring": run.ring_parallel_size, "sp": run.sequence_size}
    order = run.axis_order.split("-")
    node = np.arange(run.world_size).reshape([sizes[axis] for axis in order]) // ranks_a_node
    said = [
        f"{_WORDS[axis]} {'across nodes' if np.ptp(node, axis=at).any() else 'inside a node'}"
        for at, axis in reversed([*enumerate(order)])
        if sizes[axis] > 1
    ]
    nodes = -(-run.world_size // ranks_a_node)
    where = f"{nodes} nodes of {ranks_a_node}" if nodes > 1 else "one node"
    axes = " x ".join(f"{axis} {sizes[axis]}" for axis in order)
    return f"{run.world_size} ranks on {where} = {axes}: " + (", ".join(said) or "no axis")
