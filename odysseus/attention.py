"""Causal attention on one rank's tensors, whichever kernel computes it.

B batch, S tokens, H query heads, G kv heads, K elements of a head.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""attend(q_BSHK, k_BSGK, v_BSGK) -> o_BSHK, causal, scaled by 1/sqrt(K)."""

_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def choose_attention(
    implementation: str, device: torch.device, dtype: torch.dtype
) -> tuple[str, Attend]:
    """The name and the function of the attention kernel that a setting means on a device.

    FlashAttention's packages compute in bf16 only; auto takes them where they can.

    Raises:
        ValueError: the kernel needs CUDA, another dtype or a package that is not installed.
    """
    if implementation == "auto":
        fitting = device.type == "cuda" and _is_installed("flash_attention_2")
        fitting = fitting and dtype == torch.bfloat16
        implementation = "flash_attention_2" if fitting else "sdpa"
    if implementation == "sdpa":
        return implementation, sdpa
    if device.type != "cuda":
        raise ValueError(
            f"model.attn_implementation = {implementation} needs CUDA; "
            f"valid on {device.type}: auto, sdpa"
        )
    if dtype != torch.bfloat16:
        raise ValueError(
            f"model.attn_implementation = {implementation} computes in bf16, not in "
            f"{str(dtype).removeprefix('torch.')}; valid: auto, sdpa"
        )
    if not _is_installed(implementation):
        raise ValueError(
            f"model.attn_implementation = {implementation} needs the package "
            f"{_PACKAGES[implementation]}; valid without it: auto, sdpa"
        )
    return implementation, _flash_attention(implementation)


def sdpa(q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor) -> Tensor:
    """PyTorch's scaled_dot_product_attention; kv heads are shared, never expanded."""
    o_BHSK = F.scaled_dot_product_attention(
        q_BSHK.transpose(1, 2),
        k_BSGK.transpose(1, 2),
        v_BSGK.transpose(1, 2),
        is_causal=True,
        enable_gqa=q_BSHK.shape[2] != k_BSGK.shape[2],
    )
    return o_BHSK.transpose(1, 2)


@dataclass(frozen=True)
class BlockAttention:
    """Attention to one block of the keys, to be merged with others by its log-sum-exp.

    Attributes:
        forward: (q_BSHK, k_BTGK, v_BTGK, causal) -> (o_BSHK, logsumexp_BHS), the latter in at
            least fp32. `causal` masks the keys after a query's own; S = T then.
        backward: (grad_o, q, k, v, o, logsumexp, causal) -> gradients of q, k and v. With `o` and
            the log-sum-exp of attention to more keys, these are this block's part of them.
    """

    forward: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def differentiable(blocks: BlockAttention) -> Attend:
    """Causal attention of a kernel, for autograd; keeps q, k, v, o and the log-sum-exp.

    torch.compile goes around it.
    """

    def attend(q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor) -> Tensor:
        return _Attention.apply(q_BSHK, k_BSGK, v_BSGK, blocks)

    return torch.compiler.disable(attend)  # pyright: ignore[reportReturnType]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: BlockAttention) -> Tensor:
        o, logsumexp = blocks.forward(q, k, v, True)
        ctx.save_for_backward(q, k, v, o, logsumexp)
        ctx.blocks = blocks
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_o,), (q, k, v, o, logsumexp) = grads, ctx.saved_tensors
        return *ctx.blocks.backward(grad_o, q, k, v, o, logsumexp, True), None


def choose_block_attention(name: str, device: torch.device) -> BlockAttention | None:
    """The kernel with log-sum-exp beside the one that :func:`choose_attention` names, if any."""
    if device.type == "cpu":
        return BlockAttention(_cpu_forward, _cpu_backward)
    found = {
        "sdpa": CUDA_FLASH,
        "flash_attention_2": BlockAttention(_flash_2_forward, _flash_2_backward),
    }
    return found.get(name)


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    return o.transpose(1, 2), logsumexp


def _cpu_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_o, q, k, v, o = (x.transpose(1, 2) for x in (grad_o, q, k, v, o))
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_o, q, k, v, o, logsumexp, 0.0, causal
    )
    grad_q, grad_k, grad_v = (x.transpose(1, 2) for x in grads)
    return grad_q, grad_k, grad_v


def _cuda_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, logsumexp, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
    return o.transpose(1, 2), logsumexp


def _cuda_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, keys = q.shape[1], k.shape[1]
    grad_o, q, k, v, o = (x.transpose(1, 2) for x in (grad_o, q, k, v, o))
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, which there is none of
    grads = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        *(grad_o, q, k, v, o, logsumexp.contiguous()),
        *(None, None, tokens, keys, 0.0, causal, seed, seed[0]),
    )
    grad_q, grad_k, grad_v = (x.transpose(1, 2) for x in grads)
    return grad_q, grad_k, grad_v


CUDA_FLASH = BlockAttention(_cuda_forward, _cuda_backward)
"""PyTorch's own FlashAttention-2."""


def _flash_2_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    kernels = importlib.import_module("flash_attn.flash_attn_interface")
    scale = q.shape[-1] ** -0.5
    o, logsumexp, *_ = kernels._flash_attn_forward(
        *(q, k, v, 0.0, scale, causal),
        **{"window_size_left": -1, "window_size_right": -1, "softcap": 0.0},
        **{"alibi_slopes": None, "return_softmax": False},
    )
    return o, logsumexp


def _flash_2_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = importlib.import_module("flash_attn.flash_attn_interface")
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    kernels._flash_attn_backward(
        *(grad_o.contiguous(), q, k, v, o, logsumexp.contiguous(), *grads),
        *(0.0, q.shape[-1] ** -0.5, causal, -1, -1, 0.0, None, False),
    )
    return grads


def by_head(x: Tensor, head_dim: int) -> Tensor:
    """[B, S, F·K], heads side by side, as [B, S, F, K]; what has that shape stays as it is."""
    return x if x.dim() == 4 else x.unflatten(-1, (-1, head_dim))


def _is_installed(implementation: str) -> bool:
    return importlib.util.find_spec(_PACKAGES[implementation]) is not None


def _flash_attention(implementation: str) -> Attend:
    module = importlib.import_module(_PACKAGES[implementation])

    def attend(q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor) -> Tensor:
        return module.flash_attn_func(q_BSHK, k_BSGK, v_BSGK, causal=True)

    return attend
