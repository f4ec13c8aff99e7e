"""Offload of the block inputs that activation checkpointing saves: host memory until backward.

Each input is copied out when its block begins and copied back one block before backward needs it.
There is one copy stream per direction, so that both copies overlap with a block's compute
(arXiv 2506.13996 §3.3). The last block's input stays on the device, because its backward is next.
On a CPU, streams copy synchronously.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from odysseus.memory.host_memory import HostMemory


class CopyStream:
    """A stream of copies, in order, that overlaps with compute. On a CPU, ordinary copies."""

    def __init__(self, device: torch.device) -> None:
        self.module = getattr(torch, device.type)  # torch.cuda, torch.cpu
        self.stream = self.module.Stream()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Start a copy after all work issued so far. The source must live until :meth:`wait`."""
        self.stream.wait_stream(self.module.current_stream())
        with self.module.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def wait(self) -> None:
        """Make work that is issued from now on wait for all copies."""
        self.module.current_stream().wait_stream(self.stream)


@dataclass
class _SavedInput:
    """One block's input: on the device, in host memory, or in both during a copy."""

    on_device: Tensor | None
    on_host: Tensor | None = None


class CheckpointOffload:
    """Host buffers for the block inputs of one model, allocated once and reused in every step.

    Args:
        host: The account that the buffers are taken from.
        device: The device that computes.
        blocks: Number of blocks of the model; the last one's input is not offloaded.
    """

    def __init__(self, host: HostMemory, device: torch.device, blocks: int) -> None:
        self.host, self.blocks = host, blocks
        self.to_host, self.to_device = CopyStream(device), CopyStream(device)
        self._saved: list[_SavedInput] = []
        self._free: list[Tensor] = []

    def saved_input_hooks(self, x: Tensor) -> saved_tensors_hooks:
        """Return the context under which autograd offloads a block's input `x` when it saves it.

        Other tensors are saved as usual.
        """
        key = _storage_key(x)  # not x: autograd keeps the hooks, and they would keep x

        def pack(saved: Tensor) -> Tensor | Callable[[], Tensor]:
            return self._offload(saved) if _storage_key(saved) == key else saved

        def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
            return packed if isinstance(packed, Tensor) else packed()

        return saved_tensors_hooks(pack, unpack)

    def _offload(self, x: Tensor) -> Callable[[], Tensor]:
        """Start copying x to the host; return the function that fetches it in backward."""
        if self._saved:
            self.to_host.wait()
            if self._saved[-1].on_host is not None:  # the last block's input stays
                self._saved[-1].on_device = None
        saved = _SavedInput(on_device=x.detach())
        self._saved.append(saved)
        if len(self._saved) < self.blocks:
            saved.on_host = self._free.pop() if self._free else self.host.empty(x)
            self.to_host.copy(saved.on_host, x)
        return self._restore

    def _restore(self) -> Tensor:
        """Return the newest input, on the device, and start fetching the one saved before it."""
        newest = self._saved.pop()
        self.to_device.wait()
        if newest.on_host is not None:
            self._free.append(newest.on_host)
        x = newest.on_device
        assert x is not None, "it was prefetched when the input after it was restored"
        if self._saved:
            self._prefetch(self._saved[-1], x)
        return x

    def _prefetch(self, saved: _SavedInput, like: Tensor) -> None:
        if saved.on_device is None and saved.on_host is not None:
            saved.on_device = torch.empty_like(like)
            self.to_device.copy(saved.on_device, saved.on_host)


def _storage_key(x: Tensor) -> tuple[object, ...]:
    """Identify the memory that a tensor views, also on the meta device, which has none."""
    return x.untyped_storage()._cdata, x.storage_offset(), x.shape
