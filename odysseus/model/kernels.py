"""The choice of one rank's kernels, and this project's own RMSNorm, SwiGLU and rotary embedding.

Each saves for backward only what is not cheap to recompute. B batch, S tokens, D width, F heads,
K elements per head, I intermediate width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odysseus.config.run import ModelOptions, RunConfig
from odysseus.model import attention_choice, liger
from odysseus.model.attention import (
    Attend,
    CausalAttention,
    differentiable,
    local_attention,
    sdpa,
    split_heads,
)
from odysseus.model.attention_choice import choose_attention
from odysseus.model.block_attention import BlockAttention, choose_block_attention
from odysseus.model.window import WindowAttention


@dataclass(frozen=True)
class Kernels:
    """The kernels that one rank's modules call; the functions below document each.

    Attributes:
        blocks: Attention to one block of the keys, which rings and sliding windows need; None in
            :data:`TORCH`.
        attention_with_lse: Causal attention that also returns its log-sum-exp, which attention in
            head chunks and attention sinks need, also of packed documents, one after another; None
            there, and of yunchang's ring.
    """

    attend: Attend
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    swiglu: Callable[[Tensor], Tensor]
    rotary_: Callable[[Tensor, Tensor, int], Tensor]
    blocks: BlockAttention | None = None
    attention_with_lse: CausalAttention | None = None


def choose_kernels(
    model: ModelOptions, device: torch.device, dtype: torch.dtype, head_dim: int = 128
) -> Kernels:
    """Choose the kernels for a model's options on a device, computing in this dtype.

    Args:
        head_dim: Elements of a head.

    Raises:
        ValueError: a kernel needs CUDA, another dtype or a package that is not installed.
    """
    check_kernels(model, device, dtype)
    name, attend = choose_attention(model.attn_implementation, device, dtype, head_dim)
    blocks = choose_block_attention(name, device)
    with_lse = local_attention(blocks)
    if model.type == "liger":
        return Kernels(attend, liger.rms_norm, liger.swiglu, liger.rotary, blocks, with_lse)
    return replace(TORCH, attend=attend, blocks=blocks, attention_with_lse=with_lse)


def check_kernels(model: ModelOptions, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError if a kernel needs CUDA, another dtype or a package that is not installed.

    What only a GPU knows, :func:`choose_kernels` asks on its rank.
    """
    attention_choice.check(model.attn_implementation, device, dtype)
    if model.type == "liger":
        liger.require("model.type", "torch", device)


def attention_kernel(run: RunConfig, device: torch.device) -> str:
    """Return the name of the kernel that a run's attention computes with on a device. sdpa on CUDA
    is PyTorch's memory-efficient kernel or, for want of one, its matmuls.

    Raises:
        ValueError: it needs CUDA, another dtype or a package that is not installed.
    """
    if run.ring_backend == "yunchang" and run.token_axes.ring > 1:
        return "flash_attention_2"
    asked, width = run.model.attn_implementation, run.architecture.head_dim
    name, _ = choose_attention(asked, device, run.compute_dtype, width)
    is_flash = run.dtype == "bf16" and width in range(8, 257, 8)
    if (device.type == "cuda" and name == "sdpa" and is_flash) or (
        name == "cudnn" and run.data.pack
    ):
        return "flash_attention_2"
    return name


def within_window(kernels: Kernels, window: int) -> Kernels:
    """The same kernels with attention to a sliding window.

    Args:
        window: Tokens that a query sees, its own included.
    """
    assert kernels.blocks is not None, "of a device"
    of_parts = kernels.blocks.of_parts
    blocks = WindowAttention(of_parts.forward, of_parts.backward, window)
    attention = local_attention(blocks)
    return replace(
        kernels, blocks=blocks, attend=differentiable(attention), attention_with_lse=attention
    )


def check_flash(run: RunConfig, user: str) -> None:
    """Raise ValueError if FlashAttention has no CUDA kernel for a run's dtype or head width."""
    if run.dtype != "bf16":
        raise ValueError(f"dtype = {run.dtype} has no CUDA kernel for {user}; valid: bf16")
    width = run.architecture.head_dim
    if width % 8 or width > 256:
        raise ValueError(
            f"model.head_dim = {width} has no CUDA kernel for {user}; "
            "valid: multiples of 8 up to 256"
        )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) · weight over the last dimension; inside, at least fp32.

    Saves x and one number per row. On CUDA PyTorch fuses this; on a CPU PyTorch's own would save
    four copies of x.
    """
    if x.is_cuda:
        return F.rms_norm(x, weight.shape, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) · up, [..., I], of a packed [..., 2·I] tensor; saves only its input."""
    return _SwiGLU.apply(gate_up)


def rotary_(x: Tensor, table: Tensor, heads: int) -> Tensor:
    """Rotate the first `heads` heads of x by their positions' angles, in place; keep the others.

    One projection makes q, k and v packed, and autograd does not save its output, so x may be
    overwritten. Pairs are (k, k + K/2), as in Hugging Face's Llama.

    Args:
        x: [B, S, F, K], or [B, S, F·K] with the heads' elements side by side.
        table: cos and sin, [2, B or 1, S, 1, K/2], in the dtype of x.
    """
    if torch.compiler.is_compiling():
        # torch.compile (2.13) loses the gradient of a graph input that is changed in place.
        x = x.clone()
    return _Rotary.apply(x, table, heads)


TORCH = Kernels(sdpa, rms_norm, swiglu, rotary_)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        x, weight, scale = ctx.saved_tensors
        normed = x.to(scale.dtype) * scale
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        weighted = (grad * weight).to(scale.dtype)
        along = torch.linalg.vecdot(weighted, normed).div_(x.shape[-1]).unsqueeze(-1)
        grad_x = weighted.addcmul_(normed, along, value=-1).mul_(scale)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_gate_up


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(table)
        ctx.heads = heads
        ctx.mark_dirty(x)
        _rotate_(x, table[0], table[1], heads)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        (table,) = ctx.saved_tensors
        grad_x = grad.clone(memory_format=torch.contiguous_format)
        _rotate_(grad_x, table[0], -table[1], ctx.heads)
        return grad_x, None, None


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    first, second = split_heads(x, 2 * cos.shape[-1])[..., :heads, :].chunk(2, dim=-1)
    original = first.clone()
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(original, sin)
