"""Which axes cross nodes, by the numbers."""

from __future__ import annotations

import pytest

from bench.placement import placement
from odysseus.config import RunConfig

RUN = {"world_size": 32, "ring_parallel_size": 2, "sequence_parallel_size": 8}


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (
            "dp-ring-sp",
            "32 ranks on 4 nodes of 8 = dp 2 x ring 2 x sp 8: "
            "sequence axis inside a node, ring across nodes, replicas across nodes",
        ),
        (
            "dp-sp-ring",
            "32 ranks on 4 nodes of 8 = dp 2 x sp 8 x ring 2: "
            "ring inside a node, sequence axis across nodes, replicas across nodes",
        ),
    ],
)
def test_four_nodes(order: str, said: str) -> None:
    assert placement(RunConfig(axis_order=order, **RUN), 8) == said


def test_one_node() -> None:
    run = RunConfig(world_size=4, ring_parallel_size=2)
    assert placement(run, 4) == (
        "4 ranks on one node = dp 1 x ring 2 x sp 2: "
        "sequence axis inside a node, ring inside a node"
    )


def test_a_node_that_is_not_a_multiple() -> None:
    """Nodes of 3 cut sequence axes of 2 in the middle."""
    run = RunConfig(world_size=6, sequence_parallel_size=2)
    assert placement(run, 3).endswith(": sequence axis across nodes, replicas across nodes")
