"""A world of which only one rank is there, on PyTorch's meta device: shapes without values.

PyTorch's fake process group moves nothing. FSDP2 and AdamW refuse meta tensors, because they would
be a mistake in training; here they are what is meant, so three of their checks are set aside. The
host has no device of its own here, so FSDP2's copies to and from it are made by hand.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, _refs
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.profiler import record_function
from torch.testing._internal.distributed.fake_pg import FakeStore

from bench.simulator.device import Device
from odysseus.config.run import RunConfig
from odysseus.memory import tiling
from odysseus.model.attention import differentiable
from odysseus.model.kernels import Kernels, choose_kernels

META = torch.device("meta")
_FUSED_ON = "torch.optim.optimizer._get_fused_kernels_supported_devices"
_CHUNKS = "torch.distributed.fsdp._fully_shard._fsdp_param._chunk_with_empty"


def _in_order(x: Tensor) -> bool:
    """Whether what is computed element by element of x is contiguous, though x may be a slice."""
    strides = x.stride()
    return strides[-1:] == (1,) and all(a >= b for a, b in pairwise(strides))


def _silu(x: Tensor) -> Tensor:
    return x.new_empty(x.shape) if _in_order(x) else torch.empty_like(x)


def _product(x: Tensor, y: Any) -> Tensor:
    alike = isinstance(y, Tensor) and (x.shape, x.dtype) == (y.shape, y.dtype)
    if alike and _in_order(x) and _in_order(y):
        return x.new_empty(x.shape)
    return _refs.mul(x, y)


# What tiles do most. PyTorch's own functions for meta tensors check shapes and types, for 0.03 to
# 0.9 ms each.
_SHORTCUTS: dict[str, Callable[..., Tensor]] = {
    "mm": lambda x, y: x.new_empty(x.shape[0], y.shape[1]),
    "mul.Tensor": _product,
    "silu": _silu,
    "addcmul_": lambda x, *_, **__: x,
    "mul.out": lambda *_, out: out,
    "silu_backward.grad_input": lambda *_, grad_input: grad_input,
}


class _Chunks:
    """A parameter in FSDP2's chunks, each made when it is asked for: of thousands, two are."""

    def __init__(self, tensor: Tensor, num_chunks: int, dim: int) -> None:
        self.tensor, self.dim = tensor, dim
        self.size = -(-tensor.shape[dim] // num_chunks)

    def __getitem__(self, index: int) -> Tensor:
        length = self.tensor.shape[self.dim]
        first = min(index * self.size, length)
        if first == length:
            return self.tensor.new_empty(0)
        return self.tensor.narrow(self.dim, first, min(self.size, length - first))


@contextmanager
def only_rank(rank: int, world_size: int, on_gpu: bool) -> Iterator[Device]:
    """Be one rank of a process group whose collectives move nothing, on the meta device.

    Args:
        on_gpu: Whether host and device are two, so that what moves between them is copied, and the
            device has streams.
    """
    device = Device(has_streams=on_gpu)
    with ExitStack() as stack:
        stack.enter_context(_no_collector())
        stack.enter_context(patch.object(torch, "meta", device.module(), create=True))
        stack.enter_context(device.works())
        stack.enter_context(patch(_CHUNKS, _Chunks))
        for check in ("_validate_no_meta_params", "_validate_cpu_offload_params"):
            stack.enter_context(patch.object(FSDPParamGroup, check))
        stack.enter_context(patch(_FUSED_ON, lambda: [META.type]))
        stack.enter_context(patch.object(Tensor, "to", _copying(device) if on_gpu else _move_to))
        stack.enter_context(patch.object(Tensor, "pin_memory", lambda x: x))
        stack.enter_context(patch.object(Tensor, "is_pinned", lambda x: True))
        shortcuts = torch.library.Library("aten", "IMPL", "Meta")
        stack.callback(shortcuts._destroy)
        for name, result in _SHORTCUTS.items():
            shortcuts.impl(name, result, allow_override=True)
        stack.enter_context(patch.dict(dist.Backend.backend_capability, fake=[META.type, "cpu"]))
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        try:
            yield device
        finally:
            dist.destroy_process_group()
            from torch.distributed.tensor.debug import _clear_sharding_prop_cache  # a second

            _clear_sharding_prop_cache()  # DTensor keeps meshes by shape; their groups are gone


@contextmanager
def _no_collector() -> Iterator[None]:
    """While nobody looks for cyclic garbage: of a long step's records there is none, and looking
    through them again and again takes a tenth of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def few_tiles() -> AbstractContextManager[object]:
    """While of a tiled MLP's tiles only the first two and the last are computed: one between them
    holds and leaves what the second does."""

    def cut(count: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        tiles = list(_cut(count, *tensors))
        return chain(tiles[:2], tiles[2:][-1:])

    return patch.object(tiling, "cut", cut)


_cut = tiling.cut
_to = Tensor.to


def _move_to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Tensor.to; FSDP2's offloading, alone in asking not to block, finds all where it should be."""
    return x if "non_blocking" in kwargs else _to(x, *args, **kwargs)


def _copying(device: Device) -> Callable[..., Tensor]:
    """Tensor.to; what FSDP2's offloading moves is copied, and counted where it goes."""

    def copy_to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if "non_blocking" not in kwargs:
            return _to(x, *args, **kwargs)
        to_host = args[0].type == "cpu"
        with record_function("odysseus::host") if to_host else nullcontext():
            copy = x.clone()
        if to_host and not kwargs["non_blocking"]:
            device.host_waits(device.current.last)
        return copy

    return copy_to


def cpu_kernels(run: RunConfig) -> Kernels:
    """The kernels of a real CPU rank: attention's is named, as nothing is chosen by device here."""
    cpu = torch.device("cpu")
    chosen = choose_kernels(run.model, cpu, run.compute_dtype)
    assert chosen.attention_with_lse is not None, "the CPU has one"
    return replace(chosen, attend=differentiable(chosen.attention_with_lse))
