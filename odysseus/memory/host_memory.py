"""Host memory for offloading: the limit per node, and one rank's account of what it has taken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    for file in _limit_files():
        text = file.read_text().strip() if file.is_file() else "max"
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def _limit_files() -> Iterator[Path]:
    """Yield the files that may limit the memory of this process: those of its control group, of
    version 2 or 1, and of its parent groups. Version 1 writes a huge number for no limit."""
    lines = _OWN_GROUP.read_text().splitlines() if _OWN_GROUP.is_file() else []
    groups = [line.split(":", 2)[1:] for line in lines]
    own = {controller: path for names, path in groups for controller in names.split(",")}
    for root, controller, name in (
        (_ALL_GROUPS, "", "memory.max"),
        (_ALL_GROUPS / "memory", "memory", "memory.limit_in_bytes"),
    ):
        folder = root / own.get(controller, "").lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root):
                yield group / name


def ranks_per_node(world_size: int) -> int:
    """Return how many ranks share this machine: LOCAL_WORLD_SIZE, which torchrun sets, or all.

    Raises:
        ValueError: LOCAL_WORLD_SIZE is no whole number of at least 1.
    """
    return whole_number("LOCAL_WORLD_SIZE", least=1) or world_size


@contextmanager
def host_allocation() -> Iterator[None]:
    """Raise memory that ran out inside as HostMemoryError; CUDA's may be page-locked memory."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in ("out of memory", "allocate memory")):
            raise
        raise HostMemoryError(f"allocating host memory: {error}") from error


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
        with host_allocation():
            return torch.empty(
                like.shape, dtype=like.dtype, device=self.device, pin_memory=self.pinned
            )
