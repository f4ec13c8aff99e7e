"""One rank of a world of any size for a training script: no peers, no values, and a GPU if wanted.

What a script asks of PyTorch is answered as on a cluster; collectives move nothing. Objects that
ranks exchange are this rank's own.
"""

from __future__ import annotations

import copyreg
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed import device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader

from bench.scripted import coalesced, ddp, dtensor, extensions  # noqa: F401
from bench.scripted.attention import on_gpu as gpu_attention
from bench.scripted.gpu import fake_cuda
from bench.scripted.values import Values, data_ptr
from bench.simulator.device import Device
from bench.simulator.fake_world import report_waits


@dataclass(frozen=True)
class World:
    """The rank that a script is, and its world.

    Attributes:
        ranks_per_node: Ranks, and GPUs, of a node.
        gpu: Whether each rank has a GPU.
    """

    rank: int
    size: int
    ranks_per_node: int
    gpu: bool


@contextmanager
def only_rank(world: World) -> Iterator[tuple[Device, Values]]:
    """Be a rank that torchrun has started, as far as a script can tell."""
    device, mode = Device(has_streams=world.gpu), FakeTensorMode(allow_non_fake_inputs=True)
    values = Values(mode)
    with ExitStack() as stack:
        stack.enter_context(patch.dict(dist.Backend.backend_capability, fake=["cuda", "cpu"]))
        dist.init_process_group("fake", store=FakeStore(), rank=world.rank, world_size=world.size)
        for context in _replaced(world, device, values):
            stack.enter_context(context)
        stack.enter_context(mode)
        stack.enter_context(values)
        stack.callback(_end_group)
        yield device, values


def _replaced(world: World, device: Device, values: Values) -> Iterator[Any]:
    local = world.rank % world.ranks_per_node
    names = {
        "RANK": world.rank,
        "LOCAL_RANK": local,
        "WORLD_SIZE": world.size,
        "LOCAL_WORLD_SIZE": min(world.size, world.ranks_per_node),
        "GROUP_RANK": world.rank // world.ranks_per_node,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    yield patch.dict(os.environ, {name: str(value) for name, value in names.items()})
    yield report_waits(device)
    if world.gpu:
        yield fake_cuda(device, values.waited, world.ranks_per_node, Tensor.to)
        yield gpu_attention()
    new_group, loader = dist.new_group, DataLoader.__init__

    def group_of(ranks: Any = None, *_: Any, **options: Any) -> Any:
        return new_group(ranks, use_local_synchronization=False, backend="fake")

    def load_here(self: DataLoader[Any], *args: Any, **options: Any) -> None:
        """Load in this process: another has no fake tensors."""
        after_num_workers = zip(("collate_fn", "pin_memory", "drop_last"), args[6:], strict=False)
        options = {**options, **dict(after_num_workers), "num_workers": 0, "pin_memory": False}
        for of_workers in ("prefetch_factor", "persistent_workers", "multiprocessing_context"):
            options.pop(of_workers, None)
        loader(self, *args[:5], **options)

    yield patch.object(DataLoader, "__init__", load_here)
    for name, replacement in {
        "init_process_group": lambda *_, **__: None,  # it has been started
        "new_group": group_of,
        "is_nccl_available": lambda: True,
        "barrier": lambda *_, **__: None,
        "monitored_barrier": lambda *_, **__: None,
        "all_gather_object": _gather_object,
        "gather_object": lambda obj, gathered=None, **_: _gather_object(gathered or [], obj),
        "broadcast_object_list": lambda *_, **__: None,
        "scatter_object_list": lambda out, given=None, **_: _scatter_object(world, out, given),
    }.items():
        for module in (dist, dist.distributed_c10d, device_mesh):
            if hasattr(module, name):
                yield patch.object(module, name, replacement)
    yield from ddp.replaced()
    yield from dtensor.replaced()
    yield extensions.replaced()
    yield patch.object(torch, "compile", _uncompiled)
    yield patch.object(Tensor, "numpy", lambda x, **_: values.array(x))
    yield patch.object(Tensor, "data_ptr", data_ptr)
    yield patch.object(torch.utils, "swap_tensors", _swap)
    yield patch.object(Tensor, "data", property(_data.__get__, _set_data))


def _end_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _gather_object(gathered: list[Any], obj: Any, *_: Any, **__: Any) -> None:
    gathered[:] = [obj] * len(gathered)


def _scatter_object(world: World, out: list[Any], given: list[Any] | None) -> None:
    if given:
        out[0] = given[world.rank]


def _swap(x: Tensor, y: Tensor) -> None:
    """Replace torch.utils.swap_tensors, which refuses tensors that are weakly referenced, as fake
    ones are."""
    x_attributes, y_attributes = dict(vars(x)), dict(vars(y))
    for one, attributes in ((x, y_attributes), (y, x_attributes)):
        vars(one).clear()
        vars(one).update(attributes)
    for slot in copyreg._slotnames(type(x)):  # pyrefly: ignore
        old, new = getattr(x, slot), getattr(y, slot)
        setattr(x, slot, new)
        setattr(y, slot, old)
    torch._C._swap_tensor_impl(x, y)


_data: Any = vars(torch._C.TensorBase)["data"]  # a descriptor


def _set_data(x: Tensor, new: Tensor) -> None:
    """Replace the setter of Tensor.data, which leaves a fake tensor on its old device."""
    _data.__set__(x, new)
    if isinstance(x, FakeTensor):
        x.fake_device = new.device


def _uncompiled(model: Any = None, **_: Any) -> Any:
    """Replace torch.compile: compiled code would hide its operations."""
    return model if model is not None else lambda function: function
