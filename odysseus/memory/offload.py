"""Offload of the block inputs that activation checkpointing saves: host memory until backward.

Each input is copied out when its block begins and copied back one block before backward needs it.
There is one copy stream per direction, so that both copies overlap with a block's compute
(arXiv 2506.13996 §3.3). The last block's input stays on the device, because its backward is next.
On a CPU, streams copy synchronously.

Autograd holds what it saved, and nothing else does: a graph that is freed, after backward or
without one, gives its host buffers back. So forwards and backwards may come in any order.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

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

    def finish(self) -> None:
        """Make the host wait until all copies have ended."""
        copied = self.module.Event()
        copied.record(self.stream)
        copied.synchronize()


class _SavedInput:
    """One block's input: on the device, in host memory, or in both during a copy.

    Attributes:
        buffer: The host memory that `on_host` views.
        before: The input saved before it in the same forward, unless autograd has freed it.
        copying: The stream that is copying it, if one is.
    """

    def __init__(self, offload: CheckpointOffload, block: int, x: Tensor) -> None:
        self.offload, self.block = offload, block
        self.on_device: Tensor | None = x.detach()
        self.buffer: Tensor | None = None
        self.on_host: Tensor | None = None
        self.copying: CopyStream | None = None
        self.before: Callable[[], _SavedInput | None] = _nothing

    def __del__(self) -> None:
        self.wait()  # for a copy that still reads or writes the memory which is freed now
        if self.buffer is not None:
            self.offload.buffers.give_back(self.buffer)

    def wait(self) -> None:
        """Make work that is issued from now on wait for the copy."""
        if self.copying is not None:
            self.copying.wait()
            self.copying = None

    def copy_out(self) -> None:
        """Start copying the input to host memory."""
        assert self.on_device is not None
        self.buffer = self.offload.buffers.take(self.on_device)
        self.on_host = _viewed_as(self.on_device, self.buffer)
        self.copying = self.offload.to_host
        self.copying.copy(self.on_host, self.on_device)

    def leave_device(self) -> None:
        """Free the input's device memory if host memory has it."""
        if self.on_host is not None:
            self.wait()
            self.on_device = None

    def copy_back(self) -> None:
        """Start copying the input to the device, unless it is there."""
        if self.on_device is None:
            assert self.on_host is not None
            self.on_device = torch.empty_like(self.on_host, device=self.offload.device)
            self.copying = self.offload.to_device
            self.copying.copy(self.on_device, self.on_host)

    def restore(self) -> Tensor:
        """Return the input, on the device, and start fetching the one saved before it.

        A graph that is retained restores it again.
        """
        self.copy_back()
        self.wait()
        x = self.on_device
        assert x is not None
        if self.on_host is not None:
            self.on_device = None
        if (before := self.before()) is not None:
            before.copy_back()
        return x


def _nothing() -> None:
    return None


class CheckpointOffload:
    """Host buffers for the block inputs of one model, reused in every forward.

    Args:
        host: The account that the buffers are taken from.
        device: The device that computes.
        blocks: Number of blocks of the model; the last one's input is not offloaded.
    """

    def __init__(self, host: HostMemory, device: torch.device, blocks: int) -> None:
        self.device, self.blocks = device, blocks
        self.buffers = _Buffers(host)
        self.to_host, self.to_device = CopyStream(device), CopyStream(device)
        self._newest: Callable[[], _SavedInput | None] = _nothing

    def saved_input_hooks(self, block: int, x: Tensor) -> saved_tensors_hooks:
        """Return the context under which autograd offloads a block's input `x` when it saves it.

        Other tensors are saved as usual.

        Args:
            block: Number of the block, from 0.
            x: Its input, of any shape and dtype.
        """
        key = _storage_key(x)  # not x: autograd keeps the hooks, and they would keep x

        def pack(saved: Tensor) -> Tensor | _SavedInput:
            return self._offload(block, saved) if _storage_key(saved) == key else saved

        def unpack(packed: Tensor | _SavedInput) -> Tensor:
            return packed if isinstance(packed, Tensor) else packed.restore()

        return saved_tensors_hooks(pack, unpack)

    def _offload(self, block: int, x: Tensor) -> _SavedInput:
        """Start copying x to the host, unless it is the last block's."""
        before = self._newest()
        if before is not None:
            before.leave_device()
        saved = _SavedInput(self, block, x)
        if before is not None and before.block < block:  # else a new forward has begun
            saved.before = self._newest
        if block < self.blocks - 1:
            saved.copy_out()
        self._newest = weakref.ref(saved)
        return saved


class _Buffers:
    """Host memory that is reused: no more buffers than were ever needed at once.

    Batches differ in length, so a buffer serves every tensor that is no larger.
    """

    def __init__(self, host: HostMemory) -> None:
        self.host = host
        self._free: list[Tensor] = []

    def take(self, like: Tensor) -> Tensor:
        """Return host memory for at least the bytes of a tensor.

        Raises:
            HostMemoryError: the total would exceed the account's limit.
        """
        fitting = [buffer for buffer in self._free if buffer.nbytes >= like.nbytes]
        if fitting:
            least = min(fitting, key=lambda buffer: buffer.nbytes)
            self._free = [buffer for buffer in self._free if buffer is not least]
            return least
        if self._free:  # a longer batch than before: its buffers replace the shorter ones
            self.host.release(self._free.pop())
        return self.host.empty(like)

    def give_back(self, buffer: Tensor) -> None:
        """Keep a buffer for the next :meth:`take`."""
        self._free.append(buffer)


def _viewed_as(like: Tensor, buffer: Tensor) -> Tensor:
    """View the first bytes of a contiguous buffer as a tensor of like's shape and dtype."""
    parts = buffer.flatten().view(torch.uint8)[: like.nbytes]
    return parts.view(like.dtype).view(like.shape)


def _storage_key(x: Tensor) -> tuple[object, ...]:
    """Identify the memory that a tensor views, also on the meta device, which has none."""
    return x.untyped_storage()._cdata, x.storage_offset(), x.shape
