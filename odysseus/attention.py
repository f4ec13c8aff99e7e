"""Causal attention on one rank's tensors, whichever kernel computes it.

B batch, S tokens, H query heads, G kv heads, K elements of a head.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""attend(q_BSHK, k_BSGK, v_BSGK) -> o_BSHK, causal, scaled by 1/sqrt(K)."""

_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def choose_attention(implementation: str, device: torch.device) -> tuple[str, Attend]:
    """The name and the function of the attention kernel that a setting means on a device.

    Raises:
        ValueError: the kernel needs CUDA or a package that is not installed.
    """
    if implementation == "auto":
        fitting = device.type == "cuda" and _is_installed("flash_attention_2")
        implementation = "flash_attention_2" if fitting else "sdpa"
    if implementation == "sdpa":
        return implementation, sdpa
    if device.type != "cuda":
        raise ValueError(
            f"model.attn_implementation = {implementation} needs CUDA; "
            f"valid on {device.type}: auto, sdpa"
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
