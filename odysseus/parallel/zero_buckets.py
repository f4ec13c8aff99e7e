"""Gradient reduction in buckets: FSDP2's reduce-scatter of a unit, a bounded part at a time.

FSDP2 copies a unit's gradients into one buffer of the reduction dtype. Here that buffer keeps the
gradients' own dtype and only a bucket of it is widened at once. (DeepSpeed's `reduce_bucket_size`
means the same; its fp32 reduction of b bf16 elements takes 8·b bytes, a widened copy and a flat
buffer; this takes 4·b, for the sum lands in the shard itself.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from odysseus.parallel import fsdp_internals
from odysseus.parallel.fsdp_internals import FSDPParamGroup, ReduceScatter


def bucket_widths(shard_elements: int, bucket_elements: int, ranks: int) -> list[int]:
    """Elements of this rank's shard that each reduction sums; a bucket is as many of every rank."""
    width = max(1, bucket_elements // ranks)
    full, rest = divmod(shard_elements, width)
    return [width] * full + [rest] * (rest > 0)


def reduce_in_buckets(group: FSDPParamGroup, elements: int, gradient_dtype: torch.dtype) -> None:
    """Have one parameter group of a unit reduce at most so many elements at once."""
    ranks = fsdp_internals.ranks_of(group)
    if ranks > 1:
        shards = fsdp_internals.sharded_parameters(group)
        unit_elements = sum(_padded(shard.shape, ranks) for shard in shards)
        reduce_scatter = _BucketedReduceScatter(elements, unit_elements, gradient_dtype)
        fsdp_internals.set_reduce_scatter(group, reduce_scatter)


def _padded(shape: Sequence[int], ranks: int) -> int:
    """Elements of a parameter whose rows are padded to a multiple of the ranks."""
    return -(-shape[0] // ranks) * ranks * math.prod(shape[1:])


class _BucketedReduceScatter(ReduceScatter):
    def __init__(self, bucket: int, whole: int, gradient_dtype: torch.dtype) -> None:
        self.bucket, self.whole, self.gradient_dtype = bucket, whole, gradient_dtype

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """FSDP2 asks for the unit's gradients and for this rank's shard of their sum."""
        is_input = math.prod(size) == self.whole
        return torch.empty(*size, dtype=self.gradient_dtype if is_input else dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        widths = bucket_widths(output_tensor.numel(), self.bucket, group.size())
        parts = input_tensor.view(group.size(), -1).split(widths, dim=1)
        for part, shard in zip(parts, output_tensor.split(widths), strict=True):
            # Without a name, so that a widened part is gone before the next is made.
            dist.reduce_scatter_single(shard, part.to(shard.dtype).flatten(), group=group, op=op)
