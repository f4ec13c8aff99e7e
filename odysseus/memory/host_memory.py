"""Host memory for offloading: the limit per node, and one rank's account of what it has taken."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import record_function

from odysseus.config.environment import whole_number
from odysseus.config.groups import MemorySavings
from odysseus.config.run import RunConfig

_ALL_GROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class HostMemoryError(MemoryError):
    """Offloading needs more host memory than it may take."""


def node_limit_bytes(run: MemorySavings, node_bytes: int | None = None) -> int:
    """Return the bytes of host memory that offloading may take per node: the limit, else 90 %.

    Args:
        node_bytes: Memory of the node; by default this machine's.
    """
    if run.host_memory_limit_bytes:
        return run.host_memory_limit_bytes
    return (machine_memory_bytes() if node_bytes is None else node_bytes) * 9 // 10


def machine_memory_bytes() -> int:
    """Return the memory of this machine, or of this process's control group if that is less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in _control_groups():
        file = folder / "memory.max"
        text = file.read_text().strip() if file.is_file() else "max"
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def _control_groups() -> list[Path]:
    """List the folders of this process's control group (version 2) and of its parent groups."""
    lines = _OWN_GROUP.read_text().splitlines() if _OWN_GROUP.is_file() else []
    path = next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
    folder = _ALL_GROUPS / path
    return [folder, *(p for p in folder.parents if p.is_relative_to(_ALL_GROUPS))]


def ranks_per_node(world_size: int) -> int:
    """Return how many ranks share this machine: LOCAL_WORLD_SIZE, which torchrun sets, or all.

    Raises:
        ValueError: LOCAL_WORLD_SIZE is no whole number of at least 1.
    """
    return whole_number("LOCAL_WORLD_SIZE", least=1) or world_size


class HostMemory:
    """One rank's account of what it holds in host memory.

    Args:
        limit_bytes: This rank's share of the node's limit.
        compute_device: The device that tensors are offloaded from.

    Attributes:
        device: The device of host tensors: the CPU, but meta in a dry run, which has no values.
        held_bytes: Bytes taken and not released.
        tensors: Every tensor that :meth:`empty` has made and :meth:`release` has not taken back.
    """

    def __init__(self, limit_bytes: int, compute_device: torch.device) -> None:
        self.limit_bytes, self.pinned = limit_bytes, compute_device.type == "cuda"
        self.device = compute_device if compute_device.type == "meta" else torch.device("cpu")
        self.held_bytes = 0
        self.tensors: list[Tensor] = []

    @classmethod
    def for_run(cls, run: RunConfig, device: torch.device) -> HostMemory:
        """Open the account of one rank of a run: ranks per node share the limit equally."""
        share = node_limit_bytes(run) // ranks_per_node(run.world_size)
        return cls(share, device)

    def claim(self, size_bytes: int) -> None:
        """Count memory that the caller is about to allocate elsewhere.

        Raises:
            HostMemoryError: the total would exceed the limit.
        """
        needed = self.held_bytes + size_bytes
        if needed > self.limit_bytes:
            raise HostMemoryError(
                f"offloading needs {needed} bytes of host memory on this rank, "
                f"whose share of host_memory_limit_bytes is {self.limit_bytes}"
            )
        self.held_bytes = needed

    def empty(self, like: Tensor) -> Tensor:
        """Allocate a tensor in host memory; page-locked if the compute device is a GPU.

        Raises:
            HostMemoryError: the total would exceed the limit, or the allocation fails.
        """
        self.claim(like.numel() * like.element_size())
        with record_function("odysseus::host"):
            made = self._allocate(like)
        self.tensors.append(made)
        return made

    def release(self, made: Tensor) -> None:
        """Return a tensor of :meth:`empty`; the caller drops its references too."""
        self.tensors = [tensor for tensor in self.tensors if tensor is not made]
        self.held_bytes -= made.nbytes

    def _allocate(self, like: Tensor) -> Tensor:
        try:
            return torch.empty(
                like.shape, dtype=like.dtype, device=self.device, pin_memory=self.pinned
            )
        except RuntimeError as error:  # CUDA raises it when memory cannot be page-locked
            raise HostMemoryError(f"allocating {like.nbytes} bytes on the host: {error}") from error
