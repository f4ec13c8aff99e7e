"""Causal attention on one rank's tensors: PyTorch's, and what block kernels make.

B batch, S tokens, H query heads, G kv heads, K elements per head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from odysseus.model.block_attention import BlockAttention
from odysseus.model.documents import Documents
from odysseus.model.varlen import VarlenAttention


class Attend(Protocol):
    """Causal attention, scaled by 1/sqrt(K); in packed sequences, within documents."""

    def __call__(
        self,
        q_BSHK: Tensor,
        k_BSGK: Tensor,
        v_BSGK: Tensor,
        /,
        *,
        documents: Documents | None = None,
    ) -> Tensor:
        """Return o_BSHK, in the dtype of q."""
        ...


def sdpa(
    q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, documents: Documents | None = None
) -> Tensor:
    """PyTorch's scaled_dot_product_attention. Documents are computed one after another.

    Query heads share kv heads as they are, except in fp32 on CUDA: of the kernels that hold no
    scores, FlashAttention computes no fp32, and the memory-efficient one takes no shared heads.
    """
    if documents is not None:
        packed = zip(*(x.split(1) for x in (q_BSHK, k_BSGK, v_BSGK)), documents.starts, strict=True)
        return torch.cat([_sdpa_by_document(q, k, v, starts) for q, k, v, starts in packed])
    shared = q_BSHK.shape[2] // k_BSGK.shape[2]
    if shared > 1 and q_BSHK.is_cuda and q_BSHK.dtype == torch.float32:
        k_BSGK, v_BSGK = (x.repeat_interleave(shared, dim=2) for x in (k_BSGK, v_BSGK))
    o_BHSK = F.scaled_dot_product_attention(
        q_BSHK.transpose(1, 2),
        k_BSGK.transpose(1, 2),
        v_BSGK.transpose(1, 2),
        is_causal=True,
        enable_gqa=q_BSHK.shape[2] != k_BSGK.shape[2],
    )
    return o_BHSK.transpose(1, 2)


def _sdpa_by_document(
    q_1SHK: Tensor, k_1SGK: Tensor, v_1SGK: Tensor, starts: tuple[int, ...]
) -> Tensor:
    """Compute attention within each document of one sequence."""
    lengths = np.diff([*starts, q_1SHK.shape[1]]).tolist()
    documents = zip(*(x.split(lengths, dim=1) for x in (q_1SHK, k_1SGK, v_1SGK)), strict=True)
    return torch.cat([sdpa(*document) for document in documents], dim=1)


@dataclass(frozen=True)
class CausalAttention:
    """Causal attention over whole sequences, packed or not, that also returns its log-sum-exp.

    Attributes:
        forward: (q_BSHK, k_BSGK, v_BSGK, documents) -> (o_BSHK, logsumexp_BHS).
        backward: (grad_o, q, k, v, o, logsumexp, documents) -> gradients of q, k and v.
    """

    forward: Callable[[Tensor, Tensor, Tensor, Documents | None], tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def local_attention(blocks: BlockAttention) -> CausalAttention:
    """Make causal attention over whole sequences, all on this rank, from a block kernel."""

    def spans(q: Tensor, documents: Documents | None) -> Iterable[Any] | None:
        def positions() -> tuple[np.ndarray, np.ndarray]:
            tokens = np.arange(q.shape[1])
            return tokens, tokens

        return blocks.spans(documents, q.shape[0], positions)

    def forward(
        q: Tensor, k: Tensor, v: Tensor, documents: Documents | None
    ) -> tuple[Tensor, Tensor]:
        o, logsumexp = blocks.forward_within(spans(q, documents), q, k, v, True)
        return o.to(q.dtype), logsumexp

    def backward(
        grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor,
        documents: Documents | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        grads = blocks.backward_within(spans(q, documents), grad_o, q, k, v, o, logsumexp, True)
        grad_q, grad_k, grad_v = (grad.to(q.dtype) for grad in grads)
        return grad_q, grad_k, grad_v

    return CausalAttention(forward, backward)


def differentiable(attention: CausalAttention) -> Attend:
    """Make an attention differentiable by autograd; it saves q, k, v, o and the log-sum-exp.

    torch.compile does not trace into it: each call is a graph break.
    """

    def attend(
        q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        return _Attention.apply(q_BSHK, k_BSGK, v_BSGK, None, attention, documents)

    return torch.compiler.disable(attend)  # pyrefly: ignore


def with_sinks(attention: CausalAttention, sinks_H: Tensor) -> Attend:
    """Make an attention differentiable in which every query also sees a sink: one more key whose
    score is learned, one per query head, and whose value is 0 (gpt-oss, arXiv 2508.10925 §2.3).

    Args:
        attention: Attention to the other keys.
        sinks_H: The sinks of the query heads that this rank computes.
    """

    def attend(
        q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        return _Attention.apply(q_BSHK, k_BSGK, v_BSGK, sinks_H, attention, documents)

    return attend


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks_H: Tensor | None,
        attention: CausalAttention,
        documents: Documents | None,
    ) -> Tensor:
        o, logsumexp = attention.forward(q, k, v, documents)
        if sinks_H is not None:
            sinks_H1 = sinks_H.to(logsumexp.dtype).unsqueeze(1)
            share_BHS = torch.sigmoid(logsumexp - sinks_H1)  # that all keys but the sink have
            o = (o * share_BHS.transpose(1, 2).unsqueeze(-1)).to(o.dtype)
            logsumexp = torch.logaddexp(logsumexp, sinks_H1)
        ctx.save_for_backward(q, k, v, o, logsumexp, sinks_H)
        ctx.inputs = attention, documents
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_o,), (q, k, v, o, logsumexp, sinks_H) = grads, ctx.saved_tensors
        attention, documents = ctx.inputs
        grad_sinks_H = None
        if sinks_H is not None:
            # The softmax's gradient, p·(dp - Σ p·dp), of a key whose value, so whose dp, is 0.
            wide = logsumexp.dtype
            along_BHS = torch.linalg.vecdot(grad_o.to(wide), o.to(wide)).transpose(1, 2)
            share_BHS = torch.exp(sinks_H.to(wide).unsqueeze(1) - logsumexp)
            grad_sinks_H = -(share_BHS * along_BHS).sum((0, 2)).to(sinks_H.dtype)
        # Given an output and a log-sum-exp over more keys, it returns the others' gradients.
        of_keys = attention.backward(grad_o, q, k, v, o, logsumexp, documents)
        return *of_keys, grad_sinks_H, None, None


def packed_by(kernel: VarlenAttention, attend: Attend) -> Attend:
    """Make an attention that computes packed documents in one kernel if that has their dtype and
    width, and everything else by `attend`. torch.compile does not trace into the kernel."""
    of_documents = torch.compiler.disable(kernel.attend)  # pyrefly: ignore

    def chosen(
        q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        if documents is not None and kernel.computes(q_BSHK):
            return of_documents(q_BSHK, k_BSGK, v_BSGK, documents)
        return attend(q_BSHK, k_BSGK, v_BSGK, documents=documents)

    return chosen


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """View [B, S, F·K], F heads side by side, as [B, S, F, K]; return a 4-D x unchanged."""
    return x if x.dim() == 4 else x.unflatten(-1, (-1, head_dim))
