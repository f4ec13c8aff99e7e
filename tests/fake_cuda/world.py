"""One rank with the fake GPU: streams and events record their order, tensors have no values.

The product's own code runs, unpatched, with ``device.type == "cuda"``. Replaced are the calls of a
driver in ``torch.cuda``, and page-locked memory, which fake tensors do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from bench.simulator.device import Device, Event
from bench.simulator.fake_world import report_waits

CUDA = torch.device("cuda", 0)
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30
)


@contextmanager
def only_gpu(rank: int, world_size: int, waited: Callable[[str], None]) -> Iterator[Device]:
    """Be one rank of a process group whose collectives move nothing, with a GPU of its own.

    Args:
        waited: Called with the name of whatever makes the host wait for the GPU.
    """
    device = Device(has_streams=True)
    streams, synchronize = device.module(), Event.synchronize

    def counted_synchronize(event: Event) -> None:
        waited("event")
        synchronize(event)

    calls: dict[str, Any] = {
        "Stream": streams.Stream,
        "Event": streams.Event,
        "stream": streams.stream,
        "current_stream": streams.current_stream,
        "default_stream": streams.current_stream,
        "synchronize": lambda device=None: waited("torch.cuda.synchronize"),
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: PROPERTIES.name,
        "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
        "get_device_properties": lambda device=None: PROPERTIES,
        "is_current_stream_capturing": lambda: False,
        "_lazy_init": lambda: None,
    }
    with ExitStack() as stack:
        for name, call in calls.items():
            stack.enter_context(patch.object(torch.cuda, name, call))
        stack.enter_context(patch.object(Event, "synchronize", counted_synchronize))
        stack.enter_context(report_waits(device))
        stack.enter_context(patch.object(fake_tensor, "init_gpu_context", lambda *_: None))
        stack.enter_context(patch.object(Tensor, "pin_memory", lambda x, *_: x))
        stack.enter_context(patch.object(Tensor, "is_pinned", lambda x, *_: x.device.type == "cpu"))
        stack.enter_context(patch.dict(dist.Backend.backend_capability, fake=["cuda", "cpu"]))
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        try:
            yield device
        finally:
            dist.destroy_process_group()
