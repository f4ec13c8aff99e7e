"""Waits of the host for the GPU, by the line of this project that asks for each."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
_PRODUCT = ("odysseus", "methods")
_VALUES = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")
_COPIES = ("aten::copy_", "aten::_to_copy")


class HostSyncs(TorchDispatchMode):
    """Counts them while it is entered. A value that is read is 0; no tensors are equal.

    Args:
        listed: Number that a list of a tensor's values has throughout.

    Attributes:
        found: How often, by "file: function: what"; by "PyTorch: what" if no line of this project
            asks for it.
    """

    def __init__(self, listed: int = 0) -> None:
        super().__init__()
        self.listed = listed
        self.found: Counter[str] = Counter()

    def __enter__(self) -> HostSyncs:
        self._lists = patch.object(FakeTensor, "tolist", lambda x: self._list(x))
        self._lists.start()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._lists.stop()
        super().__exit__(*exception)

    def _list(self, x: Tensor) -> Any:
        """Replace FakeTensor.tolist, which asks for each number; a GPU copies them all at once."""
        if x.device.type == "cuda":
            self.waited("tolist")
        return np.full(x.shape, self.listed).tolist()

    def waited(self, what: str) -> None:
        """Count a wait of the line that is running."""
        for frame in reversed(traceback.extract_stack()):
            file = Path(frame.filename)
            if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in _PRODUCT:
                self.found[f"{file.relative_to(ROOT)}: {frame.name}: {what}"] += 1
                return
        self.found[f"PyTorch: {what}"] += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name().split(".")[0]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_gpu = any(x.device.type == "cuda" for x in tensors)
        if name in _VALUES and on_gpu:
            self.waited(name.removeprefix("aten::"))
        if name == "aten::equal":
            return False
        if name == "aten::_local_scalar_dense":
            return 0.0 if args[0].is_floating_point() else 0
        result = func(*args, **kwargs)
        if name in _COPIES:
            from_to = _source(name, args).device.type, result.device.type
            if from_to[0] != from_to[1] and not _non_blocking(name, args, kwargs):
                self.waited(f"copy {from_to[0]} to {from_to[1]}")
        return result


def _source(name: str, args: tuple[Any, ...]) -> Tensor:
    return args[1] if name == "aten::copy_" else args[0]


def _non_blocking(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    at = 2 if name == "aten::copy_" else len(args)
    return bool(kwargs.get("non_blocking", args[at] if len(args) > at else False))
