"""Stand-ins for CUDA's kernels that allocate the same, on tensors without values, for dry runs.

All other operations of a step allocate the same on CUDA as here. B batch, S tokens of queries, T of
keys, or T tokens of packed documents, H query heads, G kv heads, K elements of a head.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from bench.hardware import profile_file
from bench.simulator import liger_kernels
from bench.simulator.liger_kernels import MULTIPROCESSORS
from bench.simulator.target import attention_of
from odysseus.config.run import RunConfig
from odysseus.model.attention import differentiable, local_attention, packed_by
from odysseus.model.block_attention import CUDA_FLASH, BlockAttention
from odysseus.model.kernels import TORCH, Kernels
from odysseus.model.varlen import FLASH, Packing, VarlenAttention

_ROW_BLOCK = 128


def flash_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate like FlashAttention-2's backward (flash_api.cpp, mha_bwd), with tokens rounded up to
    blocks: the gradients, and :func:`_sums_of_2`."""
    sums = _sums_of_2(q, k, _rounded(q.shape[1]))
    grads = CUDA_FLASH.backward(grad_o, q, k, v, o, logsumexp, causal)
    del sums
    return grads


def flash_3_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate like FlashAttention-3's backward (hopper/flash_api.cpp, mha_bwd): the gradients, and
    :func:`_sums_of_3`."""
    sums = _sums_of_3(q, k, q.shape[1], k.shape[1])
    grads = CUDA_FLASH.backward(grad_o, q, k, v, o, logsumexp, causal)
    del sums
    return grads


def flash_varlen_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, *saved: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate like FlashAttention-2's backward of packed documents (flash_api.cpp,
    mha_varlen_bwd), with a block of rows more for every document."""
    sums = _sums_of_2(q, k, _rows_of(saved[-1]))
    grads = FLASH.backward(grad_o, q, k, v, *saved)
    del sums
    return grads


def flash_3_varlen_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, *saved: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate like FlashAttention-3's backward of packed documents (hopper/flash_api.cpp,
    mha_bwd), with a block of rows more for every document, rounded up to blocks."""
    rows = _rounded(_rows_of(saved[-1]))
    sums = _sums_of_3(q, k, rows, rows)
    grads = FLASH.backward(grad_o, q, k, v, *saved)
    del sums
    return grads


def _sums_of_2(q: Tensor, k: Tensor, rows: int) -> list[Tensor]:
    """Allocate what FlashAttention-2 sums up: rows and dq in fp32, and with grouped queries dk and
    dv of every query head."""
    *batch, _, heads, width = q.shape
    block = 32 if width <= 128 else 64
    sums = [
        q.new_empty((*batch, heads, rows), dtype=torch.float32),
        q.new_empty((*batch, rows, heads, -(-width // block) * block), dtype=torch.float32),
    ]
    if k.shape[-2] != heads:
        sums += [k.new_empty((*k.shape[:-2], heads, width)) for _ in range(2)]
    return sums


def _sums_of_3(q: Tensor, k: Tensor, rows: int, key_rows: int) -> list[Tensor]:
    """Allocate what FlashAttention-3 sums up, in fp32: two kinds of sums of rows, dq, and with
    grouped queries dk and dv."""
    *batch, _, heads, width = q.shape
    shapes = [(*batch, heads, rows)] * 2 + [(*batch, heads, rows, width)]
    if k.shape[-2] != heads:
        shapes += [(*batch, k.shape[-2], key_rows, width)] * 2
    return [q.new_empty(shape, dtype=torch.float32) for shape in shapes]


def _rounded(tokens: int) -> int:
    return -(-tokens // _ROW_BLOCK) * _ROW_BLOCK


def _rows_of(packing: Packing) -> int:
    return sum(packing.lengths) + _ROW_BLOCK * len(packing.lengths)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Allocate like PyTorch's fused kernel, forward and backward (layer_norm_kernel.cu).

    It keeps x and one fp32 number per row, and allocates nothing else of that size. The stand-in
    reads the same tensors.
    """
    return _RMSNorm.apply(x, weight)


_BACKWARD = {
    "flash_attention_2": (flash_backward, flash_varlen_backward),
    "flash_attention_3": (flash_3_backward, flash_3_varlen_backward),
    # What cuDNN allocates is not published: assumed like this. FlashAttention computes documents.
    "cudnn": (flash_3_backward, flash_varlen_backward),
}
"""Backward over whole sequences, and over packed documents."""


def kernels_of(run: RunConfig) -> Kernels:
    """Return a run's kernels on the GPU of its profile."""
    speeds = profile_file.find(run.hardware).speeds
    multiprocessors = speeds.multiprocessors if speeds else 0
    return kernels(attention_of(run), run.model.type == "liger", multiprocessors or MULTIPROCESSORS)


@cache
def kernels(
    attention: str, with_liger: bool = False, multiprocessors: int = MULTIPROCESSORS
) -> Kernels:
    """Return the kernels of a GPU, with attention by a version of FlashAttention or by cuDNN."""
    backward, of_documents = _BACKWARD[attention]
    blocks = BlockAttention(CUDA_FLASH.forward, backward)
    with_lse = local_attention(blocks)
    attend = packed_by(VarlenAttention(FLASH.forward, of_documents), differentiable(with_lse))
    norm, swiglu, rotary = rms_norm, TORCH.swiglu, TORCH.rotary_
    if with_liger:
        norm = partial(liger_kernels.rms_norm, multiprocessors=multiprocessors)
        swiglu, rotary = liger_kernels.swiglu, liger_kernels.rotary
    return Kernels(attend, norm, swiglu, rotary, blocks, with_lse)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.addcmul(x, grads[0], weight), torch.empty_like(weight)
