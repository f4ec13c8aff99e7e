"""Gradient reduction in buckets: FSDP2's reduce-scatter of a unit, a bounded part at a time.

FSDP2 copies a unit's gradients into one buffer of the reduction dtype. Here that buffer keeps the
gradients' dtype, and only one bucket of it is converted at a time. DeepSpeed's `reduce_bucket_size`
means the same. For an fp32 reduction of b bf16 elements DeepSpeed takes 8·b bytes, a converted copy
and a flat buffer. This takes 4·b, because the sum is written into the shard itself.
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
    """Elements of this rank's shard that each reduction sums; a bucket has as many per rank."""
    width = max(1, bucket_elements // ranks)
    full, rest = divmod(shard_elements, width)
    return [width] * full + [rest] * (rest > 0)


def reduce_in_buckets(group: FSDPParamGroup, elements: int, gradient_dtype: torch.dtype) -> None:
    """Have one parameter group of a unit reduce at most `elements` elements at once."""
    ranks = fsdp_internals.ranks_of(group)
    if ranks > 1:
        shards = fsdp_internals.sharded_parameters(group)
        unit_elements = sum(_padded(shard.shape, ranks) for shard in shards)
        reduce_scatter = _BucketedReduceScatter(elements, unit_elements, gradient_dtype)
        fsdp_internals.set_reduce_scatter(group, reduce_scatter)


def _padded(shape: Sequence[int], ranks: int) -> int:
    """Elements of a parameter, its rows padded to a multiple of the ranks."""
    return -(-shape[0] // ranks) * ranks * math.prod(shape[1:])


class _BucketedReduceScatter(ReduceScatter):
    """Sums a unit's gradients bucket by bucket.

    Args:
        bucket: Elements that one reduction sums at most.
        unit_elements: Elements of all gradients of the unit, padding counted.
        gradient_dtype: The dtype in which the gradients wait for their reduction.
    """

    def __init__(self, bucket: int, unit_elements: int, gradient_dtype: torch.dtype) -> None:
        self.bucket, self.unit_elements = bucket, unit_elements
        self.gradient_dtype = gradient_dtype

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Allocate the buffer of the unit's gradients, or of this rank's shard of their sum."""
        is_input = math.prod(size) == self.unit_elements
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
            # No name holds the converted part, so that it is freed before the next is made.
            dist.reduce_scatter_single(shard, part.to(shard.dtype).flatten(), group=group, op=op)
