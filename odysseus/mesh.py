"""Ranks as a grid: data-parallel replicas times the sequence axis.

A rank's place is (replicate, sequence); ranks of one sequence axis are neighbours, so that on a
cluster the axis that talks most stays inside a node.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class Axis:
    """Some ranks that talk to each other, this rank's place among them, and what about.

    Attributes:
        group: The process group.
        purpose: What its traffic is for: ``activation`` of a block, ``gradient``, or ``edge`` (all
            that is outside the blocks). Profiles and the traffic meter show it.
    """

    group: dist.ProcessGroup
    purpose: str

    @property
    def size(self) -> int:
        return self.group.size()

    @property
    def rank(self) -> int:
        return self.group.rank()


@dataclass(frozen=True)
class Mesh:
    """Where this rank stands.

    Attributes:
        device: This rank's device.
        sequence: The method's own axis.
        edge: The same ranks, for what happens before the first block and after the last.
        world: All ranks.
        key_value_copies: The ranks that hold a copy of the same kv heads; size 1 where each
            kv head has one owner.
        replicate_mesh: One-dimensional mesh over the data-parallel replicas: what ZeRO shards
            the weights over that a method cuts.
        full_mesh: One-dimensional mesh over all ranks: what ZeRO shards everything else over.
    """

    device: torch.device
    sequence: Axis
    edge: Axis
    world: Axis
    key_value_copies: Axis
    replicate_mesh: DeviceMesh
    full_mesh: DeviceMesh

    @property
    def replica(self) -> int:
        """Which data-parallel replica this rank belongs to."""
        return self.world.rank // self.sequence.size


def pick_device(choice: str) -> torch.device:
    """The device of this process: its GPU, or the CPU."""
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def start_process_group(device: torch.device, timeout_s: float) -> None:
    """Join the process group that the launcher's environment describes: NCCL on GPUs, else gloo."""
    timeout = timedelta(seconds=timeout_s)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timeout, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=timeout)


def make_mesh(device: torch.device, sequence_size: int, num_key_value_heads: int) -> Mesh:
    """Lay the started ranks out as (replicate, sequence).

    Args:
        sequence_size: Ranks of the sequence axis; divides the world size.
        num_key_value_heads: Fewer kv heads than ``sequence_size`` make groups of ranks that
            share one; see :attr:`Mesh.key_value_copies`.
    """
    world = dist.distributed_c10d._get_default_group()
    world_size = world.size()
    shape = (world_size // sequence_size, sequence_size)
    grid = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "sequence"))
    copies = max(1, sequence_size // num_key_value_heads)
    runs = [list(range(first, first + copies)) for first in range(0, world_size, copies)]
    shared, _ = dist.new_subgroups_by_enumeration(runs)
    assert isinstance(shared, dist.ProcessGroup), "every rank is in one of the runs"
    return Mesh(
        device=device,
        sequence=Axis(grid.get_group("sequence"), "activation"),
        edge=Axis(grid.get_group("sequence"), "edge"),
        world=Axis(world, "edge"),
        key_value_copies=Axis(shared, "gradient"),
        replicate_mesh=grid["replicate"],
        full_mesh=grid._flatten("full"),
    )
