"""Ranks as a grid: data-parallel replicas, times the ring, the sequence and the tensor axis.

A sample is split over the last three. By default, ranks of one sequence axis are neighbours, so
that on a cluster the axis with the most communication stays inside a node; ranks of one tensor
axis, where there is one, are nearer still.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from odysseus.config.environment import whole_number
from odysseus.config.run import RunConfig
from odysseus.parallel import gloo_threads
from odysseus.parallel.cuts import Cuts, Place
from odysseus.parallel.fsdp_internals import flatten_mesh, timeout_of

_NAMES = {"dp": "replicate", "ring": "ring", "sp": "sequence", "tp": "tensor"}


@dataclass(frozen=True)
class Axis:
    """A process group and the purpose of its traffic.

    Attributes:
        group: The process group.
        purpose: ``activation`` of a block, ``gradient``, or ``edge`` (everything outside the
            blocks). Profiles and the traffic meter show it.
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
    """This rank's place on every axis.

    Attributes:
        device: This rank's device.
        replica: Index of this rank's data-parallel replica.
        ring: The axis of ring attention.
        sequence: The axis over which the method spreads a block.
        edge: The same ranks as `tensor`, for communication outside the blocks.
        world: All ranks.
        key_value_copies: The ranks that hold a copy of the same kv heads; size 1 where each
            kv head has one owner.
        uncut_mesh: One-dimensional mesh over all axes but `tensor`, of the ranks with the same
            part of each cut weight. ZeRO shards these weights over it.
        full_mesh: One-dimensional mesh over all ranks. ZeRO shards all other weights over it.
        ring_order: The order in which ring ranks have the sample's tokens
            (:mod:`odysseus.parallel.ring_order`).
        second: The tensor axis of its own, if `tensor_parallel_size` is more than 1.
        experts: The ranks that share out experts, if the method's MLP does; neighbours, whatever
            other axes they are on.
        same_experts_mesh: One-dimensional mesh of the ranks with the same experts, over which ZeRO
            shards these.
    """

    device: torch.device
    replica: int
    ring: Axis
    sequence: Axis
    edge: Axis
    world: Axis
    key_value_copies: Axis
    uncut_mesh: DeviceMesh
    full_mesh: DeviceMesh
    ring_order: Literal["zigzag", "contiguous"] = "zigzag"
    second: Axis | None = None
    experts: Axis | None = None
    same_experts_mesh: DeviceMesh | None = None

    @property
    def tensor(self) -> Axis:
        """The axis over which weights are cut: `second`, or without it `sequence`."""
        return self.second or self.sequence

    def cuts(self, dimensions: Mapping[str, int]) -> Cuts:
        """Return what a method cuts, with this rank's places on the axes that cut it."""
        experts = Place() if self.experts is None else Place(self.experts.size, self.experts.rank)
        return Cuts(dimensions, Place(self.tensor.size, self.tensor.rank), experts)

    @property
    def replicas(self) -> int:
        """Number of data-parallel replicas."""
        return self.world.size // (self.ring.size * self._block_ranks)

    @property
    def shard(self) -> int:
        """Index of this rank's shard of its sample; the shards of one ring rank are consecutive,
        and in them those of one rank of the sequence axis."""
        within = self.sequence.rank
        if self.second is not None:
            within = within * self.second.size + self.second.rank
        return self.ring.rank * self._block_ranks + within

    @property
    def _block_ranks(self) -> int:
        """Ranks of the sequence axis, times those of a second one."""
        return self.sequence.size * (1 if self.second is None else self.second.size)


def pick_device(choice: str) -> torch.device:
    """This process's device: its GPU, or the CPU. A launcher may show each rank one GPU alone."""
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device(
        "cuda", (whole_number("LOCAL_RANK") or 0) % max(1, torch.cuda.device_count())
    )


def check_gpus() -> None:
    """Raise ValueError if the ranks of this node see fewer GPUs than they are.

    If they see one, each may see another: then NCCL finds two ranks on the same GPU.
    """
    ranks, gpus = whole_number("LOCAL_WORLD_SIZE") or 1, torch.cuda.device_count()
    if 1 < gpus < ranks:
        raise ValueError(
            f"{ranks} ranks of this node see {gpus} GPUs; valid: at most as many ranks, or one GPU "
            "visible to each rank"
        )


def start_process_group(device: torch.device, timeout_s: float) -> None:
    """Join the process group that the launcher's environment describes: NCCL on GPUs, else gloo.

    Ranks find each other at MASTER_ADDR, or in the file ODYSSEUS_STORE where that is set: a file
    needs no open port.
    """
    timeout = timedelta(seconds=timeout_s)
    where: dict[str, Any] = {}
    if path := os.environ.get("ODYSSEUS_STORE"):
        size = int(os.environ["WORLD_SIZE"])
        store = dist.FileStore(path, size)
        store.set_timeout(timeout)
        where = {"store": store, "rank": int(os.environ["RANK"]), "world_size": size}
    if device.type == "cuda":
        check_gpus()
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timeout, device_id=device, **where)
    else:
        dist.init_process_group("gloo", timeout=timeout, **where)


def world_group() -> dist.ProcessGroup:
    """The started process group, of all ranks."""
    group = dist.group.WORLD
    assert group is not None, "start_process_group comes first"
    return group


def make_mesh(device: torch.device, run: RunConfig) -> Mesh:
    """Lay the started ranks out on the run's axes; there must be `run.world_size` of them."""
    if device.type == "cpu":
        gloo_threads.settle_at_exit()
    with timeout_of(world_group(), device):
        return _make_mesh(device, run)


def _make_mesh(device: torch.device, run: RunConfig) -> Mesh:
    sizes = run.axis_sizes
    order = list(sizes)
    grid = init_device_mesh(
        device.type,
        tuple(sizes.values()),
        mesh_dim_names=tuple(_NAMES[axis] for axis in order),
    )
    cutting, ranks = run.cutting_axis, run.cutting_ranks
    uncut = tuple(_NAMES[axis] for axis in order if axis != cutting)
    # Where weights are cut over more ranks than kv heads, `copies` consecutive ranks share one.
    kv_heads = run.architecture.num_key_value_heads
    copies = ranks // kv_heads if ranks % kv_heads == 0 else 1
    sharing = grid.mesh.movedim(order.index(cutting), -1).reshape(-1, copies)
    shared, _ = dist.new_subgroups_by_enumeration(sharing.tolist())
    assert isinstance(shared, dist.ProcessGroup), "every rank is in one of the groups"
    experts, same_experts = _make_expert_axis(device, run)
    return Mesh(
        device=device,
        replica=grid.get_local_rank("replicate"),
        ring=Axis(grid.get_group("ring"), "activation"),
        sequence=Axis(grid.get_group("sequence"), "activation"),
        edge=Axis(grid.get_group(_NAMES[cutting]), "edge"),
        world=Axis(world_group(), "edge"),
        key_value_copies=Axis(shared, "gradient"),
        uncut_mesh=flatten_mesh(grid[uncut], "uncut"),
        full_mesh=flatten_mesh(grid, "full"),
        ring_order=run.ring_order,
        second=Axis(grid.get_group("tensor"), "activation") if cutting == "tp" else None,
        experts=experts,
        same_experts_mesh=same_experts,
    )


def _make_expert_axis(
    device: torch.device, run: RunConfig
) -> tuple[Axis, DeviceMesh] | tuple[None, None]:
    if run.parts.mlp != "expert":
        return None, None
    ranks = run.expert_ranks
    names = ("same_experts", "experts")
    grid = init_device_mesh(device.type, (run.world_size // ranks, ranks), mesh_dim_names=names)
    return Axis(grid.get_group("experts"), "activation"), grid["same_experts"]
