"""The values that a script reads, and what replaces those that a dry run does not have.

Whole numbers and truth values on the CPU are real, up to 16 million of them in a tensor: positions,
token ids, meshes of ranks, random orders. So is a single number, such as an optimizer's count of
steps, and what a GPU computes of up to a thousand of these. A collective leaves a rank its own
values. All else has no values. There a number is 0 if it is a floating point number or a byte, else
1; a truth value is false; two tensors are not equal; an operation that keeps some elements, such as
``nonzero``, keeps all.
"""

from __future__ import annotations

import math
import sys
import sysconfig
import traceback
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

_LIBRARIES = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"])


def place() -> str:
    """Return "file:line" of the innermost line of the script that runs, else of a library."""
    frames = [(f.filename, f.lineno) for f in reversed(traceback.extract_stack())]
    own = [f for f in frames if not f[0].startswith(("<", *_LIBRARIES, _HERE))]
    others = [f for f in frames if f[0].startswith(_LIBRARIES) and "/torch/" not in f[0]]
    file, line = (own or others or frames)[0]
    return f"{file.removeprefix(_LIBRARIES[1]).lstrip('/')}:{line}"


_FEW = 1024
_CPU = torch.device("cpu")
_MOST = 2**24
_OF_WHOLE = {"aten::arange", "aten::randint", "aten::randperm", "aten::full"}
_FACTORIES = {"aten::empty", "aten::zeros", "aten::ones", "aten::empty_strided", *_OF_WHOLE}
_HERE = __file__.rpartition("/scripted/")[0]


class Values(TorchDispatchMode):
    """Answers a script's questions for values while it is entered, and lists them.

    Args:
        mode: Makes tensors without values; entered before.

    Attributes:
        asked: How often a value is asked for, by what and where.
        waits: How often the host waits for the GPU without asking for a value, by what and where.
    """

    supports_higher_order_operators = True

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode
        self._known = WeakTensorKeyDictionary()
        self.asked: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def note(self, what: str) -> None:
        """List a question of the line that runs."""
        self.asked[f"{what} at {place()}"] += 1

    def waited(self, what: str) -> None:
        """List a wait of the host that the line that runs asks for."""
        self.waits[f"{what} at {place()}"] += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if DTensor in types:
            return NotImplemented  # DTensor's own operations arrive afterwards, one by one
        if not isinstance(func, OpOverload):
            return func(*args, **(kwargs or {}))
        name = func.name()
        if _is_real(name, args, kwargs or {}):
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        if name == "aten::_local_scalar_dense":
            if args[0] in self._known:
                with unset_fake_temporarily():
                    return self._known[args[0]].item()
            self.note("a number")
            return _number(args[0])
        if name == "_c10d_functional::wait_tensor":
            return args[0]  # PyTorch's own function for fake tensors copies
        if name == "aten::equal":
            self.note("whether tensors are equal")
            return False
        if name == "aten::nonzero":
            self.note("which elements are not 0")
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        if name == "aten::masked_select":
            self.note("which elements are chosen")
            return args[0].new_empty(args[0].numel())
        given = args, kwargs or {}
        args, kwargs = tree_map_only(Tensor, self._without_value, given)
        result = func(*args, **kwargs)
        self._follow(func, given, result)
        return result

    def _follow(self, func: OpOverload, given: Any, result: Any) -> None:
        """Compute an operation too if it has few elements and the values of all are known."""
        tensors = [x for x in tree_leaves(given) if isinstance(x, Tensor)]
        results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        known = all(not isinstance(x, FakeTensor) or x in self._known for x in tensors)
        small = all(x.numel() <= _FEW for x in (*tensors, *results))
        written = [x for x in tensors if x in self._known] if func._schema.is_mutable else []
        if func.namespace == "c10d":
            return  # a rank's own values stay
        if not (tensors and known and small and func.namespace == "aten"):
            for x in written:
                del self._known[x]
            return
        real = tree_map_only(Tensor, lambda x: self._known.get(x, x), given)
        real_args, real_kwargs = tree_map_only(torch.device, lambda _: _CPU, real)
        with unset_fake_temporarily():
            values = tree_leaves(func(*real_args, **real_kwargs))
        for x, value in zip(tree_leaves(result), values, strict=True):
            if isinstance(x, FakeTensor):
                self._known[x] = value

    def _without_value(self, x: Tensor) -> Tensor:
        return x if isinstance(x, FakeTensor) else self.mode.from_tensor(x)

    def array(self, x: Tensor) -> np.ndarray:
        """Return ``x.numpy()``, of zeros where x has no values."""
        if not isinstance(x, FakeTensor):
            return _numpy(x)
        self.note("an array")
        narrow = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        dtype = str(narrow).removeprefix("torch.")
        return np.zeros(tuple(x.shape), dtype)


def _is_real(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation is one of tensors on the CPU that have values, or makes one."""
    if kwargs.get("device") not in (None, _CPU):
        return False
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if tensors:
        return all(
            x.device == _CPU
            and (x.dim() == 0 or _counts(x.dtype))
            and not isinstance(x, FakeTensor)
            for x in tensors
        )
    kind = name.partition(".")[0]
    if kind not in _FACTORIES:
        return False
    sizes = [x for x in args if isinstance(x, list | tuple)]
    numbers = [x for x in args if not isinstance(x, list | tuple)]
    count = math.prod(sizes[0]) if sizes else max(map(abs, numbers), default=1)
    dtype = kwargs.get("dtype")
    if sizes and not sizes[0]:
        return True
    if dtype is None:
        whole = kind in _OF_WHOLE and all(isinstance(x, int) for x in numbers)
    else:
        whole = _counts(dtype)
    return whole and count <= _MOST


def _counts(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


def _number(x: Tensor) -> float | int | bool:
    if x.dtype == torch.bool:
        return False
    if x.dtype == torch.uint8:
        return 0
    return 0.0 if x.is_floating_point() else 1


_numpy, _data_ptr = Tensor.numpy, Tensor.data_ptr


def data_ptr(x: Tensor) -> int:
    """Replace Tensor.data_ptr: different for different memory, and aligned."""
    if not isinstance(x, FakeTensor):
        return _data_ptr(x)
    storage = x.untyped_storage()
    return (storage._cdata << 8) + x.storage_offset() * x.element_size() & sys.maxsize
