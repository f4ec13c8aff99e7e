"""The choice of the attention kernel on a device.

B batch, S tokens, H query heads, G kv heads, K elements per head.
"""

from __future__ import annotations

import importlib
import os
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from odysseus.model.attention import Attend, differentiable, local_attention, packed_by, sdpa
from odysseus.model.block_attention import CPU_FLASH, OF_PYTORCH, PACKAGES, is_installed
from odysseus.model.documents import Documents
from odysseus.model.varlen import FLASH, Packing

_OF_CUDNN = ((9, 0), (10, 0), (10, 3))
"""Compute capabilities of the GPUs on which PyTorch prefers cuDNN's kernel: H100 and H200, B200,
B300 (sdp_utils.cpp, check_prefer_cudnn_attention)."""
_NEWER_THAN = 91500
"""PyTorch prefers versions of cuDNN after this one."""
_SWITCHES = ("TORCH_CUDNN_SDPA_DEPRIORITIZED", "TORCH_CUDNN_SDPA_AVOID_RECOMPILE")
"""Variables that turn this off: the first in PyTorch itself; with the second the log-sum-exp is in
another order than blocks have it."""


def choose_attention(
    implementation: str, device: torch.device, dtype: torch.dtype, head_dim: int = 128
) -> tuple[str, Attend]:
    """Return the name and the function of the attention kernel for a setting on a device.

    sdpa is PyTorch's choice: on CUDA in bf16 cuDNN's kernel on H100, H200, B200 and B300,
    FlashAttention-2 elsewhere. auto takes FlashAttention-3 on Hopper before it, and that of
    flash-attn where cuDNN's is not taken, if their packages are installed.

    Args:
        head_dim: Elements of a head.

    Raises:
        ValueError: the kernel needs CUDA, another dtype, GPU or head, or a package that is not
            installed.
    """
    check(implementation, device, dtype)
    if implementation in ("auto", "sdpa"):
        implementation = _fastest(device, dtype, head_dim, with_packages=implementation == "auto")
    if implementation == "sdpa":
        return implementation, _cpu_sdpa() if device.type == "cpu" else packed_by(FLASH, sdpa)
    if implementation == "cudnn":
        if not _has_cudnn(device, head_dim):
            raise ValueError(
                f"model.attn_implementation = cudnn has no kernel for model.head_dim = {head_dim} "
                f"with cuDNN {torch.backends.cudnn.version()} on this GPU; valid: auto, sdpa"
            )
        return implementation, _first(SDPBackend.CUDNN_ATTENTION)
    if is_installed(implementation):
        return implementation, _of_package(implementation)
    return implementation, _first(SDPBackend.FLASH_ATTENTION)


def check(implementation: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError if a setting needs CUDA, another dtype, or a package that is not installed.

    It asks no GPU, which would initialise CUDA in this process.
    """
    if implementation in ("auto", "sdpa"):
        return
    setting = f"model.attn_implementation = {implementation}"
    if device.type != "cuda":
        raise ValueError(f"{setting} needs CUDA; valid on {device.type}: auto, sdpa")
    if dtype != torch.bfloat16:
        raise ValueError(
            f"{setting} computes in bf16, not in {str(dtype).removeprefix('torch.')}; valid: auto, "
            "sdpa"
        )
    if implementation in PACKAGES and not (
        implementation in OF_PYTORCH or is_installed(implementation)
    ):
        raise ValueError(
            f"{setting} needs the package {PACKAGES[implementation]}; valid without it: auto, "
            f"sdpa, {', '.join(OF_PYTORCH.keys() & PACKAGES.keys())}"
        )


def _fastest(device: torch.device, dtype: torch.dtype, head_dim: int, with_packages: bool) -> str:
    """Name the fastest kernel of a device, in the order that FlashAttention-3's authors measured on
    H100 (arXiv 2407.08608, figures 5 and 6): theirs, cuDNN's, FlashAttention-2. It is assumed
    elsewhere and for newer versions."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return "sdpa"
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    if with_packages and hopper and is_installed("flash_attention_3"):
        return "flash_attention_3"
    if _has_cudnn(device, head_dim):
        return "cudnn"
    installed = with_packages and is_installed("flash_attention_2")
    return "flash_attention_2" if installed else "sdpa"


def _has_cudnn(device: torch.device, head_dim: int) -> bool:
    """Whether PyTorch prefers cuDNN's kernel for heads of this width on a GPU, also in training."""
    capability = torch.cuda.get_device_capability(device)
    is_wide = head_dim == 256 and capability == (9, 0)
    return (
        capability in _OF_CUDNN
        and (head_dim in range(8, 129, 8) or is_wide)
        and (torch.backends.cudnn.version() or 0) > _NEWER_THAN
        and torch.backends.cuda.cudnn_sdp_enabled()
        and not any(os.environ.get(name) == "1" for name in _SWITCHES)
    )


@cache
def _cpu_sdpa() -> Attend:
    """Make :func:`sdpa` for a CPU: packed documents are written into one output tensor.

    (:func:`sdpa` itself allocates one output per document and then joins them.) Made at the first
    call, because ``torch.compiler.disable`` imports modules for about a second.
    """
    packed = differentiable(local_attention(CPU_FLASH))

    def attend(
        q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        if documents is None:
            return sdpa(q_BSHK, k_BSGK, v_BSGK)
        return packed(q_BSHK, k_BSGK, v_BSGK, documents=documents)

    return attend


@cache
def _first(backend: SDPBackend) -> Attend:
    """Make :func:`sdpa` with one of PyTorch's kernels before the others; packed documents are
    computed by FlashAttention."""
    others = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
    order = list(dict.fromkeys([backend, *others]))

    def attend(
        q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        with sdpa_kernel(order, set_priority=True):
            return sdpa(q_BSHK, k_BSGK, v_BSGK, documents=documents)

    return packed_by(FLASH, attend)


def _of_package(implementation: str) -> Attend:
    """Make the attention of a package of FlashAttention's authors."""
    module = importlib.import_module(PACKAGES[implementation])

    def attend(
        q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        if documents is None:
            return module.flash_attn_func(q_BSHK, k_BSGK, v_BSGK, causal=True)
        packing = Packing.of(documents, q_BSHK.shape[1], q_BSHK.device)
        flat = (x.flatten(0, 1) for x in (q_BSHK, k_BSGK, v_BSGK))
        at = packing.offsets, packing.offsets, packing.longest, packing.longest
        o = module.flash_attn_varlen_func(*flat, *at, causal=True)
        return o.unflatten(0, q_BSHK.shape[:2])

    return attend
