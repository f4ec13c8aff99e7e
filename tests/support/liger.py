"""Liger's kernels beside torch's, run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from unittest.mock import patch

import torch
from torch import Tensor

from odysseus.config.run import ModelOptions, RunConfig
from odysseus.model import kernels, liger
from odysseus.model.loss import Loss, whole_logits
from tests.support.numerics import EPS, random, values_and_gradients

CPU = torch.device("cpu")

TOLERANCE = 1e-4
"""Largest error of a model in fp32, relative to the largest element of a gradient. Some thirty
kernels and matmuls lie behind it, and each rounds a few times at eps / 2 = 6e-8, which norms of
small numbers enlarge; a wrong contribution changes the first digits."""

LABELS = torch.tensor([0, 6, -100, 3, 3, -100, -100, 1, 2, 5, 18])

Kernel = tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]


def rotation(heads: int, turned: int, batch: int = 2) -> Kernel:
    """Return Liger's and the project's rotary embedding, and a packed tensor to rotate in part."""
    angles_BS1k = 6 * random(batch, 5, 1, 3)
    table = torch.stack([angles_BS1k.cos(), angles_BS1k.sin()])

    def of(rotary: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x_BSHK: rotary(x_BSHK, table.to(x_BSHK), turned)

    return (
        of(liger.rotary),
        of(lambda x, *rest: kernels.rotary_(x.clone(), *rest)),
        [random(2, 5, heads, 6)],
    )


def losses(labels: Tensor) -> Kernel:
    """Return Liger's and the project's loss, and 11 tokens, width 8, 19 classes: tiles 4, 4, 3."""

    def of(engine: Loss) -> Callable[..., Tensor]:
        return lambda hidden, weight: engine(hidden, weight, labels.to(hidden.device))

    fused = partial(liger.fused_linear_cross_entropy, tile=3)
    return of(fused), of(whole_logits), [random(11, 8) / 2, random(19, 8)]


def norms_of(heads: slice) -> list[Callable[..., Tensor]]:
    return [
        lambda x, weight, norm=norm: norm(x[..., heads, :], weight, EPS)
        for norm in (liger.rms_norm, kernels.rms_norm)
    ]


KERNELS: dict[str, Kernel] = {
    "rms_norm": (*norms_of(slice(None)), [random(2, 5, 4, 6), random(6)]),
    "rms_norm_of_packed_heads": (*norms_of(slice(3)), [random(2, 5, 4, 6), random(6)]),
    "swiglu": (liger.swiglu, kernels.swiglu, [random(2, 5, 12)]),
    "rotary_of_grouped_queries": rotation(heads=8, turned=6),
    "rotary_with_one_table": rotation(heads=5, turned=3, batch=1),
    "rotary_of_all_heads": rotation(heads=3, turned=3),
    "rotary_of_one_head": rotation(heads=1, turned=1),
    "loss": losses(LABELS),
    "loss_without_labels": losses(torch.full((11,), -100)),
}


def interpret() -> None:
    """Make Triton's interpreter run Liger's kernels in this process, and repair two of its defects.

    It passes a kernel's floats on as Python's, which have no dtype, and lacks CUDA's rsqrt.
    """
    import numpy as np
    import triton.language as tl
    from liger_kernel.ops import LigerRMSNormFunction
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def with_floats(argument: object) -> object:
        if not isinstance(argument, float):
            return convert(argument)
        handle = interpreter.TensorHandle(np.array([argument], np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    interpreter._implicit_cvt = with_floats
    norms = sys.modules[LigerRMSNormFunction.__module__]
    norms.rsqrt = lambda x: tl.math.rsqrt(x)
    torch.set_num_threads(1)


@contextmanager
def interpreting(count: int) -> Iterator[ProcessPoolExecutor]:
    """Start `count` processes in which Liger computes on the CPU."""
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=interpret) as pool:
        with patch.dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1"):
            started = [pool.submit(os.getpid) for _ in range(count)]
        assert all(process.result() for process in started)
        yield pool


def largest_errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Return each tensor's largest error, relative to its largest element."""
    return [
        ((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()
        for a, b in zip(found, exact, strict=True)
    ]


def kernel_errors(name: str, dtype: torch.dtype, device: torch.device) -> list[float]:
    """Return errors of Liger's output and gradients against the project's in fp64, same inputs."""
    lent, own, inputs = KERNELS[name]
    inputs = [x.to(device, dtype) for x in inputs]
    found = values_and_gradients(lent, inputs)
    wide = torch.float32 if name.startswith("loss") else dtype
    assert [x.dtype for x in found] == [wide] + [dtype] * len(inputs)
    return largest_errors(found, values_and_gradients(own, [x.double() for x in inputs]))


RUN = RunConfig(
    model=ModelOptions(
        type="liger",
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        use_qk_norm=True,  # With two ranks tp_sp turns the one kv head of a rank by itself.
    ),
    world_size=2,
    seq_len=6,
    micro_batch_size=2,
    activation_checkpointing=True,
    tiled_mlp_compute=True,
)
