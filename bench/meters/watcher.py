"""Watch a step from outside: every operation, and the profiler region it runs in."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

from torch._ops import OpOverload
from torch.distributed.tensor import DTensor
from torch.nn.modules.linear_cross_entropy import (
    _linear_cross_entropy_batch_chunked_accumulator as _linear_cross_entropy,
)
from torch.utils._python_dispatch import TorchDispatchMode

_OPAQUE = "torch_nn::_linear_cross_entropy_batch_chunked"
_RETAINS = 11
"""Argument that only its autograd reads: whether a graph may be kept."""
_WHOLE: Any = NotImplemented
"""Result of decomposing an operation that has no parts."""
_UNIT = re.compile(r"FSDP::pre_(forward|backward) \((.+)\)")


def _linear_cross_entropy_of(*args: Any) -> Any:
    """Compute PyTorch's chunked loss, which is one operation to a watcher, in its parts."""
    return _linear_cross_entropy(*(args[:_RETAINS] + args[_RETAINS + 1 :]))


class Watcher(TorchDispatchMode, ABC):
    """Calls :meth:`observe` after every operation, forward and backward, while it is entered.

    This project's collectives, FSDP2 and optimizers name their regions with
    ``torch.profiler.record_function``; `region` is the innermost name. A watcher entered while
    another is active is called by that one: a second dispatch mode would cost as much again.

    Attributes:
        unit: The ZeRO unit that began last, such as ``forward model.layers.0``.
    """

    supports_higher_order_operators = True
    _first: ClassVar[Watcher | None] = None

    def __init__(self) -> None:
        super().__init__()
        self._regions: list[str] = []
        self._inside = False
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
        if not isinstance(func, OpOverload):
            return func(*args, **kwargs)  # an operator of operators, which arrive one by one
        name = func.name()
        if name == _OPAQUE:
            return self._see_into(_linear_cross_entropy_of, args, kwargs)
        if self._inside and name.startswith("aten::"):
            parts = self._see_into(func.decompose, args, kwargs)
            if parts is not _WHOLE:
                return parts
        result = func(*args, **kwargs)
        for watcher in (self, *self._beside):
            if not name.startswith("profiler::"):
                watcher.observe(func, args, kwargs, result)
            elif name.startswith("profiler::_record_function_enter"):
                watcher._begin(args[0])
            elif name.startswith("profiler::_record_function_exit"):
                watcher._regions.pop()
        return result

    def _see_into(
        self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the body of an operation under this watcher."""
        was_inside, self._inside = self._inside, True
        super().__enter__()
        try:
            return body(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)
            self._inside = was_inside

    def _begin(self, region: str) -> None:
        self._regions.append(region)
        if match := _UNIT.match(region):
            self.unit = " ".join(match.groups())

    def __enter__(self) -> Self:
        if Watcher._first is None:
            Watcher._first = self
            super().__enter__()
        else:
            Watcher._first._beside.append(self)
        return self

    def __exit__(self, *exception: Any) -> None:  # pyrefly: ignore
        if Watcher._first is self:
            assert not self._beside, "watchers exit in reverse order of entry"
            Watcher._first = None
            super().__exit__(*exception)
        elif Watcher._first is not None:
            Watcher._first._beside.remove(self)
