"""One rank with the fake GPU: streams and events record their order, tensors have no values.

The product's own code runs, unpatched, with ``device.type == "cuda"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch.distributed as dist
import torch.distributed.tensor.debug
from torch.testing._internal.distributed.fake_pg import FakeStore

from bench.scripted.gpu import fake_cuda
from bench.simulator.device import Device
from bench.simulator.fake_world import report_waits


@contextmanager
def only_gpu(rank: int, world_size: int, waited: Callable[[str], None]) -> Iterator[Device]:
    """Be one rank of a process group whose collectives move nothing, with a GPU of its own.

    Args:
        waited: Called with the name of whatever makes the host wait for the GPU.
    """
    device = Device(has_streams=True)
    with (
        fake_cuda(device, waited),
        report_waits(device),
        patch.dict(dist.Backend.backend_capability, fake=["cuda", "cpu"]),
    ):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        try:
            yield device
        finally:
            dist.destroy_process_group()
            # It holds meshes of groups that are gone, which equal those of the next world.
            torch.distributed.tensor.debug._clear_sharding_prop_cache()
