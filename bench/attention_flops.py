"""The attention meter: FLOPs that one rank's attention kernels do in a step, by their shapes.

Unlike the model FLOPs of bench/flops.py these are of one rank and of what really runs, so they
show how evenly the causal mask's work is spread.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from bench.watch import Watcher

# Kernel: (argument of the query, of the key, of is_causal, place of heads, of tokens, matmuls).
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
}


def attention_flops(
    batch: int, heads: int, queries: int, keys: int, head_dim: int, causal: bool, matmuls: int
) -> int:
    """FLOPs of one kernel: 2 a multiplication, half of them where the mask is causal.

    Two matmuls forward; five backward, which computes the scores again (Dao, arXiv 2307.08691
    §3.1.2).
    """
    whole = 2 * matmuls * batch * heads * queries * keys * head_dim
    return whole // 2 if causal else whole


class AttentionMeter(Watcher):
    """Sums the FLOPs of every attention kernel that runs while it is entered.

    Kernels that it does not know count nothing, nor does attention that PyTorch composes of
    matmuls for want of a kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def observe(self, func: OpOverload, args: tuple[Any, ...], result: Any) -> None:
        found = _KERNELS.get(func.name())
        if found is None:
            return
        query_at, key_at, causal_at, heads_at, tokens_at, matmuls = found
        query: Tensor = args[query_at]
        causal = len(args) > causal_at and bool(args[causal_at])
        self.flops += attention_flops(
            *(query.shape[0], query.shape[heads_at], query.shape[tokens_at]),
            *(args[key_at].shape[tokens_at], query.shape[-1], causal, matmuls),
        )
