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
    """Allocate like FlashAttention-2's backward (flash_api.cpp, mha_bwd).

    Beside the gradients it allocates fp32 sums of dq and of rows, with tokens rounded up to blocks.
    With grouped queries it also allocates gradients of k and v for every query head.
    """
    (batch, tokens, heads, width), (keys, groups) = q.shape, k.shape[1:3]
    rounded = -(-tokens // _ROW_BLOCK) * _ROW_BLOCK
    block = 32 if width <= 128 else 64
    accumulators = [
        q.new_empty((batch, heads, rounded), dtype=torch.float32),
        q.new_empty((batch, rounded, heads, -(-width // block) * block), dtype=torch.float32),
    ]
    if groups != heads:
        accumulators += [k.new_empty((batch, keys, heads, width)) for _ in range(2)]
    grads = CUDA_FLASH.backward(grad_o, q, k, v, o, logsumexp, causal)
    del accumulators
    return grads


def flash_3_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate like FlashAttention-3's backward (hopper/flash_api.cpp, mha_bwd).

    Beside the gradients it allocates fp32 sums of dq and two kinds of sums of rows; with grouped
    queries fp32 sums of dk and dv too.
    """
    (batch, tokens, heads, width), (keys, groups) = q.shape, k.shape[1:3]
    shapes = [(batch, heads, tokens)] * 2 + [(batch, heads, tokens, width)]
    if groups != heads:
        shapes += [(batch, groups, keys, width)] * 2
    accumulators = [q.new_empty(shape, dtype=torch.float32) for shape in shapes]
    grads = CUDA_FLASH.backward(grad_o, q, k, v, o, logsumexp, causal)
    del accumulators
    return grads


def flash_varlen_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, *saved: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate like FlashAttention-2's backward of packed documents (flash_api.cpp,
    mha_varlen_bwd): as :func:`flash_backward`, with a block of rows more for every document."""
    (tokens, heads, width), (keys, groups) = q.shape, k.shape[:2]
    rows, block = _rows_of(tokens, saved[-1]), 32 if width <= 128 else 64
    accumulators = [
        q.new_empty((heads, rows), dtype=torch.float32),
        q.new_empty((rows, heads, -(-width // block) * block), dtype=torch.float32),
    ]
    if groups != heads:
        accumulators += [k.new_empty((keys, heads, width)) for _ in range(2)]
    grads = FLASH.backward(grad_o, q, k, v, *saved)
    del accumulators
    return grads


def flash_3_varlen_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, *saved: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate like FlashAttention-3's backward of packed documents (hopper/flash_api.cpp,
    mha_bwd): as :func:`flash_3_backward`, with a block of rows more for every document."""
    (tokens, heads, width), groups = q.shape, k.shape[1]
    rows = -(-_rows_of(tokens, saved[-1]) // _ROW_BLOCK) * _ROW_BLOCK
    shapes = [(heads, rows)] * 2 + [(heads, rows, width)]
    if groups != heads:
        shapes += [(groups, rows, width)] * 2
    accumulators = [q.new_empty(shape, dtype=torch.float32) for shape in shapes]
    grads = FLASH.backward(grad_o, q, k, v, *saved)
    del accumulators
    return grads


def _rows_of(tokens: int, packing: Packing) -> int:
    return tokens + _ROW_BLOCK * len(packing.lengths)


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
