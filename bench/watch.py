"""Watching a step from outside: every operation, and the profiler region it ran in."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

_UNIT = re.compile(r"FSDP::pre_(forward|backward) \((.+)\)")


class Watcher(TorchDispatchMode, ABC):
    """Calls :meth:`observe` after every operation, forward and backward, while it is entered.

    This project's collectives, FSDP2 and optimizers name their regions with
    ``torch.profiler.record_function``; `region` is the innermost name.

    Attributes:
        unit: The ZeRO unit that began last, as ``forward model.layers.0``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._regions: list[str] = []
        self.unit = ""

    @property
    def region(self) -> str:
        return self._regions[-1] if self._regions else ""

    @abstractmethod
    def observe(self, func: OpOverload, args: tuple[Any, ...], result: Any) -> None:
        """One operation, its arguments and its result."""

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name()
        if name.startswith("profiler::_record_function_enter"):
            self._regions.append(args[0])
            if found := _UNIT.match(args[0]):
                self.unit = " ".join(found.groups())
        elif name.startswith("profiler::_record_function_exit"):
            self._regions.pop()
        else:
            self.observe(func, args, result)
        return result
