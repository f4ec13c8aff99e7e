"""Watch a step from outside: every operation, and the profiler region it runs in."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from torch._ops import OpOverload
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

_UNIT = re.compile(r"FSDP::pre_(forward|backward) \((.+)\)")


class Watcher(TorchDispatchMode, ABC):
    """Calls :meth:`observe` after every operation, forward and backward, while it is entered.

    This project's collectives, FSDP2 and optimizers name their regions with
    ``torch.profiler.record_function``; `region` is the innermost name. A watcher entered while
    another is active is called by that one: a second dispatch mode would cost as much again.

    Attributes:
        unit: The ZeRO unit that began last, such as ``forward model.layers.0``.
    """

    _first: ClassVar[Watcher | None] = None

    def __init__(self) -> None:
        super().__init__()
        self._regions: list[str] = []
        self._beside: list[Watcher] = []
        self.unit = ""

    @property
    def region(self) -> str:
        return self._regions[-1] if self._regions else ""

    @abstractmethod
    def observe(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Handle one operation, with its arguments and its result."""

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if DTensor in types:
            return NotImplemented  # DTensor's own operations arrive afterwards, one by one
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.name()
        for watcher in (self, *self._beside):
            if not name.startswith("profiler::"):
                watcher.observe(func, args, kwargs, result)
            elif name.startswith("profiler::_record_function_enter"):
                watcher._begin(args[0])
            elif name.startswith("profiler::_record_function_exit"):
                watcher._regions.pop()
        return result

    def _begin(self, region: str) -> None:
        self._regions.append(region)
        if found := _UNIT.match(region):
            self.unit = " ".join(found.groups())

    def __enter__(self) -> Self:
        if Watcher._first is None:
            Watcher._first = self
            super().__enter__()
        else:
            Watcher._first._beside.append(self)
        return self

    def __exit__(self, *exception: Any) -> None:
        if Watcher._first is self:
            assert not self._beside, "who came in last leaves first"
            Watcher._first = None
            super().__exit__(*exception)
        elif Watcher._first is not None:
            Watcher._first._beside.remove(self)
