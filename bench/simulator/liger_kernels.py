"""Stand-ins for Liger's kernels on CUDA, on tensors without values, for dry runs.

Each allocates, keeps for backward and launches what liger-kernel 0.8.5 does there.
tests/fake_cuda/test_stand_ins.py compares them with the package's own code. B batch, S tokens,
H query heads, G kv heads, K elements of a head, D width, I intermediate width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.simulator.launch import launch
from odysseus.model import liger

MULTIPROCESSORS = 132
"""Multiprocessors of a GPU whose profile does not say; an H100's. Each sums a part of a norm's
gradient."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, multiprocessors: int) -> Tensor:
    """Stand for :func:`odysseus.model.liger.rms_norm` (its ops/rms_norm.py)."""
    return _RMSNorm.apply(x, weight, multiprocessors)


def swiglu(gate_up: Tensor) -> Tensor:
    """Stand for :func:`odysseus.model.liger.swiglu` (its ops/swiglu.py)."""
    return _SwiGLU.apply(gate_up.flatten(0, -2)).view(*gate_up.shape[:-1], -1)


def _rotate(
    q_BHSK: Tensor, k_BGSK: Tensor, cos_BSk: Tensor, sin_BSk: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return _Rotary.apply(q_BHSK, k_BGSK, cos_BSk, sin_BSk)


rotary = partial(liger.rotary, rotate=_rotate)
"""Stand for :func:`odysseus.model.liger.rotary` (its ops/rope.py)."""


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, multiprocessors: int) -> Tensor:
        x = x.contiguous()
        normed = x.new_empty(x.shape)
        scale = x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)
        launch("liger::rms_norm", [x, weight], [normed, scale])
        ctx.save_for_backward(x, weight, scale)
        ctx.multiprocessors = multiprocessors
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x, (x, weight, scale) = grads[0].contiguous(), ctx.saved_tensors
        sums = weight.new_empty((ctx.multiprocessors, len(weight)), dtype=torch.float32)
        launch("liger::rms_norm_backward", [grad_x, x, weight, scale], [grad_x, sums])
        return grad_x, sums.sum(0).to(weight.dtype), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        product = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        launch("liger::swiglu", [gate_up], [product])
        ctx.save_for_backward(gate_up)
        return product

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad, (gate_up,) = grads[0].contiguous(), ctx.saved_tensors
        launch("liger::swiglu_backward", [grad, gate_up], [gate_up])
        return gate_up


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BHSK: Tensor, k_BGSK: Tensor, cos_BSk: Tensor, sin_BSk: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos_BSk, sin_BSk)
        return _rotated(q_BHSK, k_BGSK, cos_BSk, sin_BSk)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *_rotated(*grads, *ctx.saved_tensors), None, None


def _rotated(
    q_BHSK: Tensor, k_BGSK: Tensor, cos_BSk: Tensor, sin_BSk: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotate in place, or in contiguous copies."""
    heads = [x_BHSK.transpose(1, 2).contiguous() for x_BHSK in (q_BHSK, k_BGSK)]
    launch("liger::rotary", [*heads, cos_BSk, sin_BSk], heads)
    q_BSHK, k_BSGK = heads
    return q_BSHK.transpose(1, 2), k_BSGK.transpose(1, 2)
