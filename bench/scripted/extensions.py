"""Compiled extensions of libraries: their functions stand for one kernel each.

Without values, an extension would read memory that is not there; nor need it be built. Whatever
tensors a function is given it reads and writes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.utils._pytree import tree_leaves

from bench.simulator.launch import launch


class Extension:
    """Stands for an extension's module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, function: str) -> Callable[..., Any]:
        if function.startswith("__"):
            raise AttributeError(function)

        def kernel(*args: Any, **kwargs: Any) -> int:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            launch(f"{self._name}::{function}", tensors, tensors)
            return 0

        return kernel


def _deepspeed(module: ModuleType) -> None:
    module.OpBuilder.load = lambda builder, verbose=True: Extension(builder.name)
    module.OpBuilder.is_compatible = lambda *_, **__: True


def _triton(module: ModuleType) -> None:
    def launcher(kernel: Any, grid: Any) -> Callable[..., Any]:
        return getattr(Extension("triton"), kernel.__name__)

    module.JITFunction.__getitem__ = launcher


def _megatron(module: ModuleType) -> None:
    vars(module)["load"] = lambda args: None  # it compiles what an unfused softmax does not need


_CHANGES = {
    "deepspeed.ops.op_builder.builder": _deepspeed,
    "megatron.legacy.fused_kernels": _megatron,
    "triton.runtime.jit": _triton,
}
"""Changes to a module once it has been imported."""


class _Changed(Loader):
    def __init__(self, loader: Loader, change: Callable[[ModuleType], None]) -> None:
        self._loader, self._change = loader, change

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._change(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        change = _CHANGES.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if change else None
        if spec is not None and spec.loader is not None and change is not None:
            spec.loader = _Changed(spec.loader, change)
        return spec


@contextmanager
def replaced() -> Iterator[None]:
    """Let no library that is imported from now on load an extension."""
    with patch.object(sys, "meta_path", [_Finder(), *sys.meta_path]):
        yield
