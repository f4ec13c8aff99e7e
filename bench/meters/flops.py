"""The FLOP meter: FLOPs of one rank's attention kernels and matmuls in a step, by their shapes.

Unlike the model FLOPs of bench/theory/model_flops.py, they are one rank's and count the operations
that really run: they show how evenly the causal mask's work is spread, and what is recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from bench.meters.watcher import Watcher
from odysseus.model.varlen import lengths_of

# Kernel: (argument of the query, of the key, of is_causal; dimension of heads, of tokens; matmuls).
_FORWARD, _BACKWARD = 2, 5
_KERNELS = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": (0, 1, 4, 1, 2, _FORWARD),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": (1, 2, 7, 1, 2, _BACKWARD),
    "aten::_scaled_dot_product_flash_attention": (0, 1, 4, 1, 2, _FORWARD),
    "aten::_scaled_dot_product_flash_attention_backward": (1, 2, 11, 1, 2, _BACKWARD),
    "aten::_scaled_dot_product_efficient_attention": (0, 1, 6, 1, 2, _FORWARD),
    "aten::_scaled_dot_product_efficient_attention_backward": (1, 2, 11, 1, 2, _BACKWARD),
    "aten::_scaled_dot_product_cudnn_attention": (0, 1, 6, 1, 2, _FORWARD),
    "aten::_scaled_dot_product_cudnn_attention_backward": (1, 2, 14, 1, 2, _BACKWARD),
    "flash_attn::_flash_attn_forward": (0, 1, 5, 2, 1, _FORWARD),
    "flash_attn::_flash_attn_backward": (1, 2, 11, 2, 1, _BACKWARD),
    "aten::_flash_attention_forward": (0, 1, 8, 2, 1, _FORWARD),
    "aten::_flash_attention_backward": (1, 2, 11, 2, 1, _BACKWARD),
    "flash_attn::_flash_attn_varlen_forward": (0, 1, 9, 1, 0, _FORWARD),
    "flash_attn::_flash_attn_varlen_backward": (1, 2, 15, 1, 0, _BACKWARD),
}
_OFFSETS = {
    "aten::_flash_attention_forward": 3,
    "aten::_flash_attention_backward": 6,
    "flash_attn::_flash_attn_varlen_forward": 3,
    "flash_attn::_flash_attn_varlen_backward": 9,
}
"""The argument that says where packed documents begin; None if there are none."""

# Matmul: (argument of the left matrix, of the right one).
_MATMULS = {
    **dict.fromkeys(("aten::mm", "aten::mm.out", "aten::mm.dtype_out", "aten::bmm"), (0, 1)),
    **dict.fromkeys(("aten::addmm", "aten::addmm_", "aten::addmm.out", "aten::baddbmm"), (1, 2)),
    "aten::addmm.dtype_out": (1, 2),
    "aten::_grouped_mm": (0, 1),  # rows times the matrix of their group, or groups of inner rows
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that multiplies matrices.

    Attributes:
        kind: matmul, attention_forward or attention_backward.
        sizes: For a matmul (rows, columns, inner size), the rows of a batch together; for attention
            (heads of all samples, queries, keys, elements of a head, 1 if causal). Packed documents
            count as documents of one length that have together as many tokens and scores.
    """

    kind: str
    flops: int
    sizes: tuple[int, ...]


def attention_flops(
    batch: int, heads: int, queries: int, keys: int, head_dim: int, causal: bool, matmuls: int
) -> int:
    """FLOPs of one kernel: 2 per multiplication, half of them if the mask is causal.

    Two matmuls forward; five backward, which computes the scores again (Dao, arXiv 2307.08691
    §3.1.2).
    """
    whole = 2 * matmuls * batch * heads * queries * keys * head_dim
    return whole // 2 if causal else whole


def kernel_of(name: str, args: tuple[Any, ...]) -> Kernel | None:
    """Return the kernel that an operation is; None if it multiplies no matrices."""
    if matrices := _MATMULS.get(name):
        left, right = (args[at] for at in matrices)
        inner, columns = right.shape[-2:]
        rows = left.numel() // inner if inner else left.shape[-2]  # of no inner elements
        return Kernel("matmul", 2 * rows * columns * inner, (rows, columns, inner))
    if name not in _KERNELS:
        return None
    query_at, key_at, causal_at, heads_at, tokens_at, matmuls = _KERNELS[name]
    query: Tensor = args[query_at]
    causal = len(args) > causal_at and bool(args[causal_at])
    kind = "attention_forward" if matmuls == _FORWARD else "attention_backward"
    offsets = args[_OFFSETS[name]] if name in _OFFSETS else None
    if offsets is not None:
        return _of_documents(kind, query, lengths_of(offsets, len(query)), causal, matmuls)
    batch, heads, queries = query.shape[0], query.shape[heads_at], query.shape[tokens_at]
    keys, width = args[key_at].shape[tokens_at], query.shape[-1]
    flops = attention_flops(batch, heads, queries, keys, width, causal, matmuls)
    return Kernel(kind, flops, (batch * heads, queries, keys, width, int(causal)))


def _of_documents(
    kind: str, query_THK: Tensor, lengths: list[int], causal: bool, matmuls: int
) -> Kernel:
    tokens, heads, width = query_THK.shape
    flops = sum(attention_flops(1, heads, n, n, width, causal, matmuls) for n in lengths)
    length = max(1, round(sum(n * n for n in lengths) / tokens))
    return Kernel(kind, flops, (-(-heads * tokens // length), length, length, width, int(causal)))


class FlopMeter(Watcher):
    """Sums the FLOPs of every attention kernel and every matmul that runs while it is entered.

    Unknown kernels count nothing. Attention that PyTorch composes of matmuls, for lack of a kernel,
    counts as matmuls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention = self.matmul = 0

    @property
    def columns(self) -> dict[str, int]:
        """This rank's part of the row's columns."""
        return {"attention_flops": self.attention, "matmul_flops": self.matmul}

    def observe(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        kernel = kernel_of(func.name(), args)
        if kernel is None:
            return
        if kernel.kind == "matmul":
            self.matmul += kernel.flops
        else:
            self.attention += kernel.flops
