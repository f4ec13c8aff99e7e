"""Placement: the axes that cross nodes, and the GPUs that NCCL then connects."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.hardware.profiles import PROFILES
from bench.simulator import dry_run, fit
from bench.simulator.placement import connected, placement
from methods import METHODS
from odysseus.config.run import RunConfig

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


@pytest.mark.parametrize(
    ("run", "gpus"),
    [
        (RunConfig(method="tp_sp", world_size=8), 0),
        (RunConfig(method="ulysses", world_size=8), 7),
        (RunConfig(method="ulysses", world_size=16), 0),  # across two nodes
        (RunConfig(method="ulysses", world_size=16, sequence_parallel_size=8), 7),
        (RunConfig(method="ulysses", world_size=8, ring_parallel_size=2), 3 + 1),
        (RunConfig(method="odysseus", world_size=8, ring_parallel_size=2), 1),
        (RunConfig(method="odysseus", world_size=16, ring_parallel_size=2), 0),
        (RunConfig(method="ulysses", axis_order="dp-sp-ring", **RUN), 1),
        (RunConfig(method="tsp", world_size=8), 1),
        (RunConfig(method="tsp+zero", world_size=8, ring_backend="allgather"), 0),
        (RunConfig(method="tp_sp+tsp", world_size=8), 1),
        (RunConfig(method="ulysses+tsp", world_size=8), 7),
        (RunConfig(method="ulysses", world_size=8, tensor_parallel_size=2), 3),
    ],
)
def test_a_gpu_is_connected_to_those_of_its_node_that_it_sends_to(
    run: RunConfig, gpus: int
) -> None:
    assert connected(run, 8) == gpus


@pytest.mark.parametrize("ring", [1, 2])
@pytest.mark.parametrize("backend", ["native", "allgather"])
@pytest.mark.parametrize("method", METHODS)
def test_only_sends_and_all_to_alls_connect(method: str, backend: str, ring: int) -> None:
    """Compare with the traffic of the same run."""
    run = RunConfig(method=method, world_size=4, ring_parallel_size=ring, ring_backend=backend)
    traffic = dry_run.count(replace(run, dry_run=True), 0).traffic
    sends = traffic["comm_bytes_all_to_all"] + traffic["comm_bytes_p2p"]
    assert (connected(run, 8) > 0) == (sends > 0)


def test_nccl_memory_for_eight_gpus_equals_the_measured_one() -> None:
    """NCCL takes 3.28 GB from tensors on eight H100."""
    profile = PROFILES["h100-80g"]
    ulysses, tp = (
        fit.gpu_limit_bytes(RunConfig(method=method, world_size=8), profile)
        for method in ("ulysses", "tp")
    )
    assert tp == profile.usable_bytes
    assert (tp - ulysses) / 1e9 == pytest.approx(4.34 - 1.06, abs=0.01)
