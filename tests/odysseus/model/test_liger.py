"""Liger's kernels equal this project's: each alone, in the whole model, and in two ranks of it.

Triton's interpreter runs them here, in fp32, in two processes of their own: it must be asked for
before triton is imported, and the other tests' fork server has imported it. B batch, S tokens,
H heads, K elements of a head.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from odysseus.config.architecture import Architecture
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.model import kernels, liger
from odysseus.model.decoder import MLP, Attention, CausalLM, Tricks
from odysseus.model.kernels import TORCH, Kernels, choose_kernels
from odysseus.model.loss import Loss, whole_logits
from tests.odysseus.model.test_kernels import EPS, ROUNDINGS, random, values_and_gradients

CPU = torch.device("cpu")
TOLERANCE = 1e-4
"""Of a model in fp32, relative to the largest element of a gradient. Some thirty kernels and
matmuls lie behind it, and each rounds a few times at eps / 2 = 6e-8, which norms of small numbers
enlarge; a wrong contribution changes the first digits."""

LABELS = torch.tensor([0, 6, -100, 3, 3, -100, -100, 1, 2, 5, 18])
Kernel = tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]


def rotation(heads: int, turned: int, batch: int = 2) -> Kernel:
    """Liger's rotary embedding, ours, and a packed tensor of which the first heads are turned."""
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
    """Liger's loss, ours, and 11 tokens of 8 elements and 19 classes: tiles of 4, 4 and 3."""

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
    """Make Triton's interpreter run Liger's kernels in this process, which mends two things.

    It hands a kernel's floats on as Python's, which have no dtype, and lacks CUDA's rsqrt.
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
    """So many processes in which Liger computes on the CPU."""
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=interpret) as pool:
        with patch.dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1"):
            started = [pool.submit(os.getpid) for _ in range(count)]
        assert all(process.result() for process in started)
        yield pool


@pytest.fixture(scope="module")
def interpreters() -> Iterator[ProcessPoolExecutor]:
    with interpreting(2) as pool:
        yield pool


def largest_errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Of each tensor, relative to its largest element."""
    return [
        ((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()
        for a, b in zip(found, exact, strict=True)
    ]


def kernel_errors(name: str, dtype: torch.dtype, device: torch.device) -> list[float]:
    """Of Liger's output and gradients against ours in fp64, on the very same numbers."""
    lent, ours, inputs = KERNELS[name]
    inputs = [x.to(device, dtype) for x in inputs]
    found = values_and_gradients(lent, inputs)
    wide = torch.float32 if name.startswith("loss") else dtype
    assert [x.dtype for x in found] == [wide] + [dtype] * len(inputs)
    return largest_errors(found, values_and_gradients(ours, [x.double() for x in inputs]))


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_ours(interpreters: ProcessPoolExecutor, name: str) -> None:
    errors = interpreters.submit(kernel_errors, name, torch.float32, CPU).result()
    assert max(errors) < ROUNDINGS * torch.finfo(torch.float32).eps / 2


def changed_and_kept(name: str) -> tuple[list[bool], int]:
    """Which inputs a kernel wrote over, and how many elements it kept for backward."""
    lent, _, inputs = KERNELS[name]
    given = [x.float().requires_grad_() for x in inputs]
    before = [x.detach().clone() for x in given]
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = lent(*given)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))
    out.sum().backward()
    changed = [not torch.equal(x, y) for x, y in zip(given, before, strict=True)]
    return changed, sum(kept.values())


@pytest.mark.parametrize(
    ("name", "changed", "kept"),
    [
        ("rms_norm", [False, False], 240 + 6 + 40),  # x, weight, a number a row.
        ("swiglu", [True], 120),  # Its input, in which backward leaves the gradient.
        ("rotary_of_grouped_queries", [False], 2 * 2 * 5 * 3),  # The table.
        ("rotary_of_one_head", [False], 2 * 2 * 5 * 3),
        ("loss", [False, False], 11 * 8 + 19 * 8),  # The gradients.
    ],
)
def test_what_is_written_over_and_kept(
    interpreters: ProcessPoolExecutor, name: str, changed: list[bool], kept: int
) -> None:
    assert interpreters.submit(changed_and_kept, name).result() == (changed, kept)


ARCHITECTURE = Architecture(
    vocab_size=19,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)
VARIANTS = {
    "llama": ARCHITECTURE,
    "qwen_tied": replace(ARCHITECTURE, use_qk_norm=True, tie_word_embeddings=True),
}


def model_results(variant: str, lent: Kernels, loss: Loss, tricks: Tricks) -> list[Tensor]:
    """The loss and every gradient of two samples of 5 tokens: tiles of 3 and 2 in the MLP."""
    architecture = VARIANTS[variant]
    model = CausalLM(
        architecture,
        lambda: Attention(architecture, lent),
        lambda: MLP(architecture, lent),
        lent,
        tricks=tricks,
        loss=loss,
    )
    dtype = torch.float64 if lent is TORCH else torch.float32
    with torch.no_grad():
        for parameter in model.to(dtype).parameters():
            parameter.copy_(random(*parameter.shape).float() / 2)
    input_ids = torch.arange(10).reshape(2, 5)
    labels = torch.where(input_ids % 5 == 3, -100, input_ids + 1)
    result = model(input_ids, torch.arange(5)[None], labels)
    return [result.detach(), *torch.autograd.grad(result, list(model.parameters()))]


def model_errors(variant: str, recompute: bool, tile_mlp: bool) -> list[float]:
    """Of the loss and gradients with all of Liger's kernels, against plain ones in fp64."""
    lent = choose_kernels(ModelOptions(type="liger"), CPU, torch.float32)
    loss = partial(liger.fused_linear_cross_entropy, tile=3)
    found = model_results(variant, lent, loss, Tricks(tile_mlp=tile_mlp, recompute=recompute))
    return largest_errors(found, model_results(variant, TORCH, whole_logits, Tricks()))


@pytest.mark.parametrize(
    ("variant", "recompute", "tile_mlp"),
    [
        ("llama", False, False),
        ("llama", False, True),
        ("llama", True, False),
        ("llama", True, True),
        ("qwen_tied", True, True),
    ],
)
def test_models_equal(
    interpreters: ProcessPoolExecutor, variant: str, recompute: bool, tile_mlp: bool
) -> None:
    errors = interpreters.submit(model_errors, variant, recompute, tile_mlp).result()
    assert max(errors) < TOLERANCE


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
