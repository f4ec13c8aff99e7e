"""The account of a kernel's own Python on a GPU, and of the dry run's stand-in for it.

Liger's functions and PyTorch's chunked loss run on the fake GPU, forward and backward; Triton's
launches do nothing.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.meters.flops import FlopMeter
from bench.meters.memory import MemoryMeter
from bench.meters.watcher import Watcher
from bench.scripted.gpu import CUDA, PROPERTIES
from bench.simulator import cuda_losses, liger_kernels
from bench.simulator.fake_world import META, only_rank
from bench.simulator.launch import LAUNCH
from odysseus.model import liger, loss
from tests.fake_cuda.syncs import HostSyncs
from tests.fake_cuda.world import only_gpu

TILE = 300
Function = Callable[..., Tensor]


def _norm(norm: Callable[[Tensor, Tensor, float], Tensor], heads: int) -> Function:
    return lambda x_BSHK, weight_K: norm(x_BSHK[..., :heads, :], weight_K, 1e-5)


def _rotary(rotary: Callable[[Tensor, Tensor, int], Tensor], heads: int) -> Function:
    def of(x_BSHK: Tensor) -> Tensor:
        table = x_BSHK.new_empty(2, 1, x_BSHK.shape[1], 1, x_BSHK.shape[-1] // 2)
        return rotary(x_BSHK, table, heads)

    return of


def _loss(engine: loss.Loss) -> Function:
    def of(hidden_TD: Tensor, weight_VD: Tensor) -> Tensor:
        labels_T = torch.empty(len(hidden_TD), dtype=torch.int64, device=hidden_TD.device)
        return engine(hidden_TD, weight_VD, labels_T)

    return of


_norm_of_gpu = partial(liger_kernels.rms_norm, multiprocessors=PROPERTIES.multi_processor_count)
FUNCTIONS: dict[str, tuple[Function, Function, list[tuple[int, ...]]]] = {
    "liger norm": (_norm(liger.rms_norm, 8), _norm(_norm_of_gpu, 8), [(2, 64, 8, 128), (128,)]),
    "liger norm of packed heads": (
        *(_norm(liger.rms_norm, 6), _norm(_norm_of_gpu, 6)),
        [(2, 64, 8, 128), (128,)],
    ),
    "liger swiglu": (liger.swiglu, liger_kernels.swiglu, [(2, 64, 512)]),
    "liger rotary": (
        *(_rotary(liger.rotary, 6), _rotary(liger_kernels.rotary, 6)),
        [(2, 64, 8, 128)],
    ),
    "liger rotary of one head": (
        *(_rotary(liger.rotary, 1), _rotary(liger_kernels.rotary, 1)),
        [(2, 64, 1, 128)],
    ),
    "liger loss": (
        _loss(partial(liger.fused_linear_cross_entropy, tile=TILE)),
        _loss(partial(cuda_losses.liger, tile=TILE)),
        [(1000, 256), (4000, 256)],
    ),
    "torch loss": (
        _loss(partial(loss.linear_cross_entropy, tile=TILE)),
        _loss(partial(cuda_losses.linear_cross_entropy, tile=TILE)),
        [(1000, 256), (4000, 256)],
    ),
    "torch loss in one tile": (
        _loss(partial(loss.linear_cross_entropy, tile=5000)),
        _loss(partial(cuda_losses.linear_cross_entropy, tile=5000)),
        [(1000, 256), (4000, 256)],
    ),
}
"""The function, its stand-in, and the shapes of their arguments."""


class Launches(Watcher):
    """Collects the elements of the tensors of every launch; those of one storage once.

    Attributes:
        found: Per launch, ascending.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[int]] = []

    def add(self, tensors: list[Tensor]) -> None:
        distinct = {(x.untyped_storage()._cdata, x.numel()): x.numel() for x in tensors}
        self.found.append(sorted(distinct.values()))

    def observe(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        if func.name() == LAUNCH:
            self.add([*args[1], *args[2]])


def account(
    function: Function, shapes: list[tuple[int, ...]], device: torch.device, launches: Launches
) -> dict[str, Any]:
    """Return what forward and backward in bf16 compute, and the bytes alive after each of their
    larger allocations."""
    given = [
        torch.empty(shape, dtype=torch.bfloat16, device=device, requires_grad=True)
        for shape in shapes
    ]
    memory, flops = MemoryMeter(), FlopMeter()
    memory.watch(given, "parameters")
    with memory, flops, launches:
        out = function(*given)
        gradients = torch.autograd.grad(out, given, torch.empty_like(out))
    del out, gradients  # outside: not part of it
    course = memory.course(sys.maxsize)
    totals = [sum(of) for of in zip(*course.bytes.values(), strict=True)]
    return {
        "matmul_flops": flops.matmul,
        "launches": launches.found,
        "alive": [after for before, after in itertools.pairwise(totals) if after > before + 8192],
    }


@contextmanager
def no_launches(launches: Launches) -> Iterator[None]:
    """Do nothing for a launch of Triton's but note its tensors."""
    from triton.runtime.jit import JITFunction

    def of(kernel: JITFunction[Any], grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            launches.add([x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)])

        return launch

    with patch.object(JITFunction, "__getitem__", of):
        yield


def of_original(name: str) -> dict[str, Any]:
    """Return the account of a function on the fake GPU."""
    function, _, shapes = FUNCTIONS[name]
    syncs, launches = HostSyncs(), Launches()
    with only_gpu(0, 1, syncs.waited), no_launches(launches), FakeTensorMode(), syncs:
        return account(function, shapes, CUDA, launches)


def of_stand_in(name: str) -> dict[str, Any]:
    """Return the account of its stand-in in a dry run."""
    _, stand_in, shapes = FUNCTIONS[name]
    with only_rank(0, 1, on_gpu=True):
        return account(stand_in, shapes, META, Launches())


def originals() -> dict[str, dict[str, Any]]:
    """Return the account of every function on the fake GPU."""
    import liger_kernel.ops  # noqa: F401  before `torch.cuda` is replaced

    return {name: of_original(name) for name in FUNCTIONS}
