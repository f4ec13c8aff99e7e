"""Attention of two blocks, merged."""

from __future__ import annotations

import torch
from torch import Tensor

from odysseus.model.block_attention import BlockAttention


def in_two_blocks(blocks: BlockAttention, packed: Tensor, grad: Tensor) -> list[Tensor]:
    """Return output and gradients of the second half of the queries, from a packed projection as in
    a ring. They attend to their own keys under the mask, then to the first half of the keys, and
    both results are merged."""
    q, k, v = packed.split([8, 2, 2], dim=2)
    half = slice(packed.shape[1] // 2, None)
    home = q[:, half], k[:, half], v[:, half]
    before = q[:, half], k[:, : half.start], v[:, : half.start]
    (o, logsumexp), (o_before, logsumexp_before) = (
        blocks.forward(*home, True),
        blocks.forward(*before, False),
    )
    share = torch.sigmoid(logsumexp_before - logsumexp).transpose(1, 2)[..., None]
    o = o.to(share.dtype).lerp(o_before.to(share.dtype), share).to(q.dtype)
    whole = torch.cat([logsumexp] * 2, dim=2)  # of more queries than these: a slice is strided
    whole[:, :, half] = torch.logaddexp(logsumexp, logsumexp_before)
    of = grad[:, half], whole[:, :, half]
    (dq, *dkv), (dq_before, *dkv_before) = (
        blocks.backward(of[0], *home, o, of[1], True),
        blocks.backward(of[0], *before, o, of[1], False),
    )
    return [x.double().cpu() for x in (o, dq + dq_before, *dkv, *dkv_before)]
