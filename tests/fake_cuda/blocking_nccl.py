"""Ranks on a GPU whose NCCL waits for ever where a peer is gone, and one rank that fails.

    python -m torch.distributed.run … -m tests.fake_cuda.blocking_nccl FAILURE:RANK VERB FLAG…

NCCL notices no peer that has left: a collective with it does not return, and neither does the end
of a process group nor that of a process that destroys its communicators (vLLM issue 39846, PyTorch
issue 180611). gloo's collectives stand in for it, on a CPU.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

import torch
import torch.distributed as dist

from bench.__main__ import console
from bench.runner import launch, worker
from bench.scripted.gpu import PROPERTIES
from odysseus.config.run import RunConfig

FAILURES = {
    "memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "nccl": dist.DistBackendError("NCCL error in: NCCLUtils.cpp:37\nFailed to CUDA calloc 4 bytes"),
    "value": ValueError("the weights are not there"),
    "nothing": None,
}
CUDA = torch.device("cuda", 0)


def wait_for_ever() -> NoReturn:
    while True:
        time.sleep(60)


class Communicator:
    """Waits for its peers when it is destroyed, as one does whose collective has not ended."""

    def __del__(self) -> None:
        time.sleep(60)  # not to the end of time, which no test would see


COMMUNICATORS: list[Communicator] = []
"""This process's own; PyTorch, too, keeps them until Python shuts down."""


@contextmanager
def blocking_nccl() -> Iterator[None]:
    """Make process groups on CUDA start, and end, without CUDA."""
    start, destroy = dist.init_process_group, dist.destroy_process_group

    def started(backend: str, device_id: torch.device, **where: Any) -> None:
        assert (backend, device_id) == ("nccl", CUDA)
        start("gloo", **where)
        COMMUNICATORS.append(Communicator())

    def destroyed() -> None:
        dist.barrier()  # all ranks together
        destroy()

    with ExitStack() as stack:
        stack.enter_context(patch.object(worker, "pick_device", lambda _: CUDA))
        stack.enter_context(patch.object(torch.cuda, "set_device", lambda _: None))
        stack.enter_context(patch.object(torch.cuda, "get_device_properties", lambda _: PROPERTIES))
        stack.enter_context(patch.object(dist, "init_process_group", started))
        stack.enter_context(patch.object(dist, "destroy_process_group", destroyed))
        yield


@contextmanager
def failing(of: str) -> Iterator[None]:
    """Fail instead of measuring: FAILURE:RANK, while the other ranks wait in a collective."""
    failure, _, rank = of.partition(":")

    def fail(*_: Any, **__: Any) -> NoReturn:
        if dist.get_rank() == int(rank) and FAILURES[failure] is not None:
            raise FAILURES[failure]
        wait_for_ever()

    with (
        blocking_nccl(),
        patch.object(worker, "measure_in_group", fail),
        patch.object(launch, "measure_in_group", fail),
    ):
        yield


def measure(of: str, run: RunConfig, **_: Any) -> dict[str, Any]:
    """Fail as one rank of a cell."""
    with failing(of):
        return launch.measure(run)


if __name__ == "__main__":
    _, of_this_job, *sys.argv[1:] = sys.argv
    with failing(of_this_job):
        sys.exit(console())
