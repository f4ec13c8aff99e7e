"""Block inputs that activation checkpointing keeps, waiting in host memory for their backward.

Each goes out when its block begins and comes back one block ahead of need, on a copy stream each
way, so that both copies hide behind a block's compute (arXiv 2506.13996 §3.3). The last block's
input stays: its backward is next. A CPU's streams do everything at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from odysseus.memory.host_memory import HostMemory


class CopyStream:
    """Copies beside the compute stream, in order. On a CPU, ordinary copies."""

    def __init__(self, device: torch.device) -> None:
        self.module = getattr(torch, device.type)  # torch.cuda, torch.cpu
        self.stream = self.module.Stream()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Begin once all that was issued so far is done. The source must live until `wait`."""
        self.stream.wait_stream(self.module.current_stream())
        with self.module.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def wait(self) -> None:
        """Let what is issued from now on begin only once all copies are done."""
        self.module.current_stream().wait_stream(self.stream)


@dataclass
class _Kept:
    """One block's input: on the device, in host memory, or in both while a copy is under way."""

    on_device: Tensor | None
    on_host: Tensor | None = None


class CheckpointOffload:
    """Where the block inputs of one model wait; buffers are made once and used in every step.

    Args:
        host: The account that the buffers are taken from.
        blocks: Blocks of the model; the last one's input is not moved.
    """

    def __init__(self, host: HostMemory, device: torch.device, blocks: int) -> None:
        self.host, self.blocks = host, blocks
        self.out, self.back = CopyStream(device), CopyStream(device)
        self._kept: list[_Kept] = []
        self._free: list[Tensor] = []

    def saved_input_hooks(self, x: Tensor) -> saved_tensors_hooks:
        """Context in which a block's input `x` is saved by moving it, everything else as usual."""
        place = _place(x)  # x itself would stay: autograd keeps the hooks

        def pack(saved: Tensor) -> Tensor | Callable[[], Tensor]:
            return self._put(saved) if _place(saved) == place else saved

        def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
            return packed if isinstance(packed, Tensor) else packed()

        return saved_tensors_hooks(pack, unpack)

    def _put(self, x: Tensor) -> Callable[[], Tensor]:
        if self._kept:
            self.out.wait()
            if self._kept[-1].on_host is not None:  # the last block's stays
                self._kept[-1].on_device = None
        kept = _Kept(on_device=x.detach())
        self._kept.append(kept)
        if len(self._kept) < self.blocks:
            kept.on_host = self._free.pop() if self._free else self.host.empty(x)
            self.out.copy(kept.on_host, x)
        return self._take

    def _take(self) -> Tensor:
        """The newest input, back on the device; the one before it starts on its way."""
        kept = self._kept.pop()
        self.back.wait()
        if kept.on_host is not None:
            self._free.append(kept.on_host)
        x = kept.on_device
        assert x is not None, "it was fetched when the input after it was taken"
        if self._kept:
            self._fetch(self._kept[-1], x)
        return x

    def _fetch(self, kept: _Kept, like: Tensor) -> None:
        if kept.on_device is None and kept.on_host is not None:
            kept.on_device = torch.empty_like(like)
            self.back.copy(kept.on_device, kept.on_host)


def _place(x: Tensor) -> tuple[object, ...]:
    """Which memory a tensor looks at, also where it has none, on the meta device."""
    return x.untyped_storage()._cdata, x.storage_offset(), x.shape
