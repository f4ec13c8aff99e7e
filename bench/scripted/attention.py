"""Attention of a script on the fake GPU: the kernels of FlashAttention-2, or PyTorch's own.

A fake GPU has no kernels to choose from, so PyTorch would compute attention by matmuls.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

_sdpa = F.scaled_dot_product_attention
_aten = torch.ops.aten


def on_gpu() -> AbstractContextManager[object]:
    """Replace PyTorch's attention for tensors of a GPU."""
    return patch.object(F, "scaled_dot_product_attention", _chosen)


def _chosen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Take FlashAttention-2 for 16-bit numbers without a mask, else the memory-efficient kernel."""
    options: dict[str, Any] = {"scale": scale}
    if query.device.type != "cuda" or query.dim() != 4:
        options |= {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal}
        return _sdpa(query, key, value, **options, enable_gqa=enable_gqa)
    width = query.shape[-1]
    narrow = query.dtype in (torch.bfloat16, torch.float16)
    if narrow and attn_mask is None and width <= 256 and width == value.shape[-1]:
        pad = -width % 8  # the kernel's heads are multiples of 8 wide
        parts = [F.pad(x, (0, pad)) if pad else x for x in (query, key, value)]
        options["scale"] = scale or width**-0.5
        flash = _aten._scaled_dot_product_flash_attention
        return flash(*parts, dropout_p, is_causal, False, **options)[0][..., :width]
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            bias = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = bias.masked_fill_(attn_mask.logical_not(), float("-inf"))
        attn_mask = attn_mask.expand(*query.shape[:2], query.shape[2], key.shape[2])
    efficient = _aten._scaled_dot_product_efficient_attention
    needs_grad = any(x.requires_grad for x in (query, key, value)) and torch.is_grad_enabled()
    return efficient(query, key, value, attn_mask, needs_grad, dropout_p, is_causal, **options)[0]
