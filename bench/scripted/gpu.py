"""A GPU that computes nothing: ``torch.cuda`` as its users see it, without a driver.

:mod:`bench.scripted.library` must have been loaded before PyTorch. Tensors on ``cuda:0`` are fake
tensors; streams and events record the program that the host issues.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.utils._pytree import tree_map_only

from bench.simulator.device import Device, Event, Stream

_MEMORY_IN_USE = ("memory_allocated", "max_memory_allocated", "memory_reserved")
_MEMORY_IN_USE += ("max_memory_reserved", "memory_cached", "max_memory_cached")
_MEMORY_RESETS = ("reset_peak_memory_stats", "reset_max_memory_allocated")
_MEMORY_RESETS += ("reset_accumulated_memory_stats", "reset_max_memory_cached")
CUDA = torch.device("cuda", 0)
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    pci_domain_id=0xFFFF,  # of no device
    pci_bus_id=0,
    pci_device_id=0,
)

CUDNN = 91600
"""Its version of cuDNN, as ``torch.backends.cudnn.version`` has it."""


class _Generator:
    """Random numbers of a GPU without values: any state will do."""

    def get_state(self) -> Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    graphsafe_get_state = clone_state = get_state

    def set_state(self, state: Any) -> None:
        pass

    graphsafe_set_state = manual_seed = set_state

    def initial_seed(self) -> int:
        return 0


@contextmanager
def fake_cuda(
    device: Device,
    waited: Callable[[str], None],
    gpus: int = 1,
    copy: Callable[[Tensor, torch.device], Tensor] | None = None,
) -> Iterator[None]:
    """Replace the calls of a driver in ``torch.cuda`` by those of a device without values.

    Args:
        gpus: GPUs of a node, at most 16.
        copy: Copies what ``torch.tensor`` makes to a GPU; by default into memory without values.
        waited: Called with the name of whatever makes the host wait for the GPU.
    """
    streams, synchronize = device.module(), Event.synchronize
    tensor, current = torch.tensor, [0]

    def counted_synchronize(event: Event) -> None:
        waited("event")
        synchronize(event)

    class OwnStream(Stream):
        """A class, as libraries name it in annotations."""

        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(device)

        def synchronize(self) -> None:
            waited("stream")
            device.host_waits(self.last)

        def query(self) -> bool:
            return True

    class OwnEvent(Event):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(device)

        def wait(self, stream: Stream | None = None) -> None:
            (stream or device.current).wait_event(self)

        def query(self) -> bool:
            return True

        def elapsed_time(self, _: Event) -> float:
            waited("the milliseconds between two events")
            return 1.0

    def set_device(index: Any) -> None:
        current[0] = index if isinstance(index, int) else torch.device(index).index or 0

    def copied(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        """Replace torch.tensor, which reads from a GPU and copies to it below what fake tensors
        see."""
        if not isinstance(data, Tensor):
            data = tree_map_only(Tensor, lambda x: x.tolist(), data)
        if device is None or torch.device(device).type != "cuda":
            return tensor(data, device=device, **options)
        waited("torch.tensor")
        made = tensor(data, **options)
        if copy:
            return copy(made, torch.device(device))
        return torch.empty(made.shape, dtype=made.dtype, device=device)

    calls: dict[str, Any] = {
        "Stream": OwnStream,
        "Event": OwnEvent,
        "stream": streams.stream,
        "current_stream": streams.current_stream,
        "default_stream": streams.current_stream,
        "synchronize": lambda device=None: waited("torch.cuda.synchronize"),
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "device_count": lambda: gpus,
        "current_device": lambda: current[0],
        "set_device": set_device,
        "device": lambda device: nullcontext(),
        "get_device_name": lambda device=None: PROPERTIES.name,
        "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
        "get_device_properties": lambda device=None: PROPERTIES,
        "is_current_stream_capturing": lambda: False,
        "is_bf16_supported": lambda *_, **__: True,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "default_generators": tuple(_Generator() for _ in range(gpus)),
        "get_rng_state": lambda device=None: _Generator().get_state(),
        "set_rng_state": lambda state, device=None: None,
        "get_rng_state_all": lambda: [_Generator().get_state() for _ in range(gpus)],
        "set_rng_state_all": lambda states: None,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "mem_get_info": lambda device=None: (PROPERTIES.total_memory,) * 2,
        **dict.fromkeys(_MEMORY_IN_USE, lambda device=None: 0),
        **dict.fromkeys(_MEMORY_RESETS, lambda device=None: None),
        "memory_stats": lambda device=None: defaultdict(int),
        "_lazy_init": lambda: None,
    }
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "tensor", copied))
        for module in (torch.cuda, torch.cuda.random):
            for name in calls.keys() & vars(module).keys():
                stack.enter_context(patch.object(module, name, calls[name]))
        for name in ("range_push", "range_pop", "mark"):
            stack.enter_context(patch.object(torch.cuda.nvtx, name, lambda *_, **__: None))
        stack.enter_context(patch.object(torch.backends.cudnn, "version", lambda: CUDNN))
        stack.enter_context(patch.object(Event, "synchronize", counted_synchronize))
        stack.enter_context(patch.object(fake_tensor, "init_gpu_context", lambda *_: None))
        stack.enter_context(patch.object(Tensor, "record_stream", lambda *_: None))
        stack.enter_context(patch.object(Tensor, "pin_memory", lambda x, *_: x))
        stack.enter_context(patch.object(Tensor, "is_pinned", lambda x, *_: x.device.type == "cpu"))
        yield
