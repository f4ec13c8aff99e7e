"""Packed documents in one kernel: FlashAttention over sequences of different lengths, end to end.

B sequences of S tokens are T = B·S tokens of N documents. H query heads, G kv heads, K elements per
head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from odysseus.model.documents import Documents


@dataclass(frozen=True, eq=False)
class Packing:
    """The documents of a batch, as FlashAttention takes them.

    Attributes:
        offsets: Where each document begins among the T tokens, and T; int32, [N+1]. FlashAttention
            calls it cu_seqlens.
        lengths: Tokens of each document.
    """

    offsets: Tensor
    lengths: tuple[int, ...]

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @classmethod
    def of(cls, documents: Documents, tokens: int, device: torch.device) -> Packing:
        """Return the packing of documents of sequences of this many tokens.

        It is made once for a batch: the host waits for the device to copy the offsets.
        """
        known, total = _PACKINGS.get(documents), len(documents.starts) * tokens
        if known is None or known.offsets.device != device or sum(known.lengths) != total:
            rows = enumerate(documents.starts)
            edges = [row * tokens + start for row, starts in rows for start in starts]
            edges.append(total)
            offsets = torch.tensor(edges, dtype=torch.int32, device=device)
            known = _PACKINGS[documents] = cls(offsets, tuple(np.diff(edges).tolist()))
        return known

    @staticmethod
    def share(documents: Documents, others: Documents) -> None:
        """Let others that begin at the same places use the packing of documents, if it is made."""
        if packing := _PACKINGS.get(documents):
            _PACKINGS[others] = packing


_PACKINGS = WeakIdKeyDictionary()
"""The packings of the documents that are alive."""


def lengths_of(offsets: Tensor, tokens: int) -> list[int]:
    """Return the tokens of each document of T tokens; of a packing's offsets without a wait for the
    device. Documents of other offsets without values count as equally long."""
    for packing in _PACKINGS.values():
        if packing.offsets is offsets:
            return [*packing.lengths]
    if offsets.is_meta or type(offsets) is not Tensor:
        count = len(offsets) - 1
        return [tokens * (at + 1) // count - tokens * at // count for at in range(count)]
    return offsets.diff().tolist()


@dataclass(frozen=True)
class VarlenAttention:
    """A kernel of causal attention within documents.

    Attributes:
        forward: (q_THK, k_TGK, v_TGK, packing) -> (o_THK, logsumexp_HT, the state of its random
            numbers, which nothing draws).
        backward: (grad_o, q, k, v, o, logsumexp, state, packing) -> gradients of q, k and v.
    """

    forward: Callable[[Tensor, Tensor, Tensor, Packing], tuple[Tensor, Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]

    @staticmethod
    def computes(q: Tensor) -> bool:
        """Whether FlashAttention trains these heads: their dtype, their width, on their GPU."""
        width = q.shape[-1]
        if q.is_cuda:
            capability = torch.cuda.get_device_capability(q.device)
            is_small = capability[0] in (8, 12) and capability != (8, 0)  # not A100, H100, B200
            if capability < (8, 0) or (is_small and width > 192):
                return False
        return q.dtype in (torch.bfloat16, torch.float16) and width in range(8, 257, 8)

    def attend(
        self, q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, documents: Documents
    ) -> Tensor:
        """Return o_BSHK; autograd saves q, k, v, o and the log-sum-exp."""
        packing = Packing.of(documents, q_BSHK.shape[1], q_BSHK.device)
        flat = (x.flatten(0, 1) for x in (q_BSHK, k_BSGK, v_BSGK))
        return _Attention.apply(*flat, self, packing).unflatten(0, q_BSHK.shape[:2])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, kernel: VarlenAttention, packing: Packing
    ) -> Tensor:
        o, *others = kernel.forward(q, k, v, packing)
        ctx.save_for_backward(q, k, v, o, *others)
        ctx.inputs = kernel, packing
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernel, packing = ctx.inputs
        return *kernel.backward(*grads, *ctx.saved_tensors, packing), None, None


def _forward(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Tensor]:
    at = packing.offsets, packing.offsets, packing.longest, packing.longest
    o, logsumexp, state, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *at, 0.0, True, False, scale=q.shape[-1] ** -0.5
    )
    return o, logsumexp, state


def _backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, state: Tensor,
    packing: Packing,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    at = packing.offsets, packing.offsets, packing.longest, packing.longest
    return torch.ops.aten._flash_attention_backward(
        *(grad_o, q, k, v, o, logsumexp, *at, 0.0, True, state, state.new_empty(0)),
        scale=q.shape[-1] ** -0.5,
    )


FLASH = VarlenAttention(_forward, _backward)
"""FlashAttention as PyTorch ships it."""
