"""A world with only one rank, on PyTorch's meta device: shapes without values.

PyTorch's fake process group moves nothing. FSDP2 and AdamW refuse meta tensors, which would be a
mistake in training; here they are wanted, so three of their checks are turned off. The meta device
has no host beside it, so FSDP2's copies between device and host are made here.

This file is the one home of the patches for dry runs of this project's own code; bench/scripted has
those for any script. `PATCHED` names each attribute, and
tests/bench/simulator/test_fake_world.py fails where a new version of PyTorch lacks one.
"""

from __future__ import annotations

import gc
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, _refs
from torch._C._distributed_c10d import FakeWork
from torch.profiler import record_function
from torch.testing._internal.distributed.fake_pg import FakeStore

from bench.simulator import cuda_losses
from bench.simulator.device import Device
from odysseus.config.run import RunConfig
from odysseus.memory import tiling
from odysseus.model import loss
from odysseus.model.attention import differentiable
from odysseus.model.kernels import Kernels, choose_kernels

META = torch.device("meta")
_FSDP = "torch.distributed.fsdp._fully_shard"
_REFUSALS_OF_META = (
    f"{_FSDP}._fsdp_param_group.FSDPParamGroup._validate_no_meta_params",
    f"{_FSDP}._fsdp_param_group.FSDPParamGroup._validate_cpu_offload_params",
)
_FUSED_ON = "torch.optim.optimizer._get_fused_kernels_supported_devices"
_CHUNKS = f"{_FSDP}._fsdp_param._chunk_with_empty"
_FORGET_MESHES = "torch.distributed.tensor.debug._clear_sharding_prop_cache"
PATCHED = {
    _REFUSALS_OF_META[0]: ("self",),
    _REFUSALS_OF_META[1]: ("self",),
    _FUSED_ON: (),
    _CHUNKS: ("tensor", "num_chunks", "dim"),
    _FORGET_MESHES: (),
    "torch.testing._internal.distributed.fake_pg.FakeStore": None,
    "torch._C._distributed_c10d.FakeWork.wait": None,
    "torch._refs.mul": None,
    "torch.distributed.Backend.backend_capability": None,
    "torch.library.Library.impl": (
        "self",
        "op_name",
        "fn",
        "dispatch_key",
        "with_keyset",
        "allow_override",
    ),
    "torch.library.Library._destroy": ("self",),
    "torch.Tensor.to": None,
    "torch.Tensor.pin_memory": None,
    "torch.Tensor.is_pinned": None,
}
"""Attributes of PyTorch that a dry run replaces or calls although they are private, with the names
of their parameters; None where PyTorch does not say them."""


def _in_order(x: Tensor) -> bool:
    """Whether an elementwise result of x is contiguous, though x itself may be a slice."""
    strides = x.stride()
    return strides[-1:] == (1,) and all(a >= b for a, b in pairwise(strides))


def _silu(x: Tensor) -> Tensor:
    return x.new_empty(x.shape) if _in_order(x) else torch.empty_like(x)


def _product(x: Tensor, y: Any) -> Tensor:
    alike = isinstance(y, Tensor) and (x.shape, x.dtype) == (y.shape, y.dtype)
    if alike and _in_order(x) and _in_order(y):
        return x.new_empty(x.shape)
    return _refs.mul(x, y)


# The most frequent operations of tiles. PyTorch's own functions for meta tensors check shapes and
# types, which takes 0.03 to 0.9 ms per call.
_SHORTCUTS: dict[str, Callable[..., Tensor]] = {
    "mm": lambda x, y: x.new_empty(x.shape[0], y.shape[1]),
    "mul.Tensor": _product,
    "silu": _silu,
    "addcmul_": lambda x, *_, **__: x,
    "mul.out": lambda *_, out: out,
    "silu_backward.grad_input": lambda *_, grad_input: grad_input,
}


class _Chunks:
    """A parameter in FSDP2's chunks, each made when it is read: FSDP2 reads two of thousands."""

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
        on_gpu: Whether the device is a GPU: it has streams, and tensors are copied between it and
            the host.
    """
    device = Device(has_streams=on_gpu)
    with ExitStack() as stack:
        stack.enter_context(_no_garbage_collection())
        if on_gpu:
            stack.enter_context(patch.dict(loss.ENGINES, cuda_losses.ENGINES))
        stack.enter_context(patch.object(torch, "meta", device.module(), create=True))
        stack.enter_context(report_waits(device))
        stack.enter_context(patch(_CHUNKS, _Chunks))
        for check in _REFUSALS_OF_META:
            stack.enter_context(patch(check))
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
            # DTensor caches meshes by shape; their groups do not exist any more.
            pkgutil.resolve_name(_FORGET_MESHES)()  # imported late: it takes a second


@contextmanager
def report_waits(device: Device) -> Iterator[None]:
    """Tell the device whenever the fake process group's handles are waited for."""
    wait = FakeWork.wait

    def reported_wait(work: FakeWork) -> bool:
        device.waited(work)
        return wait(work)

    with patch.object(FakeWork, "wait", reported_wait):
        yield


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Turn the cyclic garbage collector off.

    The records of a long step hold no cycles, and searching them again and again takes a tenth of
    the step's time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def few_tiles() -> AbstractContextManager[object]:
    """Compute only the first two tiles and the last one of a tiled MLP.

    A tile between them allocates and keeps the same as the second.
    """

    def cut(count: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        tiles = list(_cut(count, *tensors))
        return chain(tiles[:2], tiles[2:][-1:])

    return patch.object(tiling, "cut", cut)


_cut = tiling.cut
_to = Tensor.to


def _move_to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Replace Tensor.to: return x for FSDP2's offloading, the only caller with `non_blocking`."""
    return x if "non_blocking" in kwargs else _to(x, *args, **kwargs)


def _copying(device: Device) -> Callable[..., Tensor]:
    """Replace Tensor.to: copy for FSDP2's offloading, so that meters count the copy."""

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
    """Return the kernels of a real CPU rank; the meta device would choose other attention."""
    cpu = torch.device("cpu")
    chosen = choose_kernels(run.model, cpu, run.compute_dtype)
    assert chosen.attention_with_lse is not None, "the CPU has one"
    return replace(chosen, attend=differentiable(chosen.attention_with_lse))
