"""A value on its way to the host, while the device goes on."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """A tensor's values in host memory, on their way from when it is made. On a CPU they are there.

    Args:
        value: A tensor with values, of any shape and dtype, that nothing writes to before
            :meth:`wait`.
    """

    def __init__(self, value: Tensor) -> None:
        self._copy = value.to("cpu", non_blocking=True)  # page-locked, if value is on CUDA
        self._ended = getattr(torch, value.device.type).Event()
        self._ended.record()

    def wait(self) -> Tensor:
        """Return the copy when it has ended. The host does not wait for work issued later."""
        self._ended.synchronize()
        return self._copy
