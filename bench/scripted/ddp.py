"""DistributedDataParallel in a world without peers.

Its reducer is C++: it compares shapes with other ranks below what fake tensors see, and reads the
result of a collective, which the fake process group does not have. A communication hook that does
the same stands in for its default.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel, distributed

from odysseus.parallel.fsdp_internals import call_after_backward

_forward = DistributedDataParallel.forward


def replaced() -> Iterator[AbstractContextManager[object]]:
    """Yield the replacements."""
    yield patch.object(distributed, "_verify_param_shape_across_processes", lambda *_, **__: None)
    yield patch.object(DistributedDataParallel, "forward", _with_hook)


class _Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def _with_hook(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
    if not self._comm_hooks:
        self.register_comm_hook(None, _average)
        self.logger = _Silent()  # pyrefly: ignore  the reducer's asks a GPU for times
    return _forward(self, *args, **kwargs)


def _average(_, bucket):  # DDP reads annotations, and refuses those that are text
    """Average a bucket of gradients; the caller waits at the end of backward."""
    buffer = bucket.buffer().div_(dist.get_world_size())
    work = dist.all_reduce(buffer, async_op=True)
    assert work is not None, "this rank is in the group"

    def wait() -> None:
        work.wait()

    call_after_backward(wait)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(buffer)
    return done
