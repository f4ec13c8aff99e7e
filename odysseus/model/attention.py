"""Causal attention on one rank's tensors, whichever kernel computes it.

B batch, S tokens, H query heads, G kv heads, K elements of a head.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from odysseus.model.block_attention import CPU_FLASH, BlockAttention
from odysseus.model.documents import Documents, Span


class Attend(Protocol):
    """Causal attention, scaled by 1/sqrt(K), within documents where sequences are packed."""

    def __call__(
        self,
        q_BSHK: Tensor,
        k_BSGK: Tensor,
        v_BSGK: Tensor,
        /,
        *,
        documents: Documents | None = None,
    ) -> Tensor:
        """o_BSHK."""
        ...


_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def choose_attention(
    implementation: str, device: torch.device, dtype: torch.dtype
) -> tuple[str, Attend]:
    """The name and the function of the attention kernel that a setting means on a device.

    FlashAttention's packages compute in bf16 only; auto takes them where they can.

    Raises:
        ValueError: the kernel needs CUDA, another dtype or a package that is not installed.
    """
    if implementation == "auto":
        fitting = device.type == "cuda" and _is_installed("flash_attention_2")
        fitting = fitting and dtype == torch.bfloat16
        implementation = "flash_attention_2" if fitting else "sdpa"
    if implementation == "sdpa":
        return implementation, _cpu_sdpa() if device.type == "cpu" else sdpa
    if device.type != "cuda":
        raise ValueError(
            f"model.attn_implementation = {implementation} needs CUDA; "
            f"valid on {device.type}: auto, sdpa"
        )
    if dtype != torch.bfloat16:
        raise ValueError(
            f"model.attn_implementation = {implementation} computes in bf16, not in "
            f"{str(dtype).removeprefix('torch.')}; valid: auto, sdpa"
        )
    if not _is_installed(implementation):
        raise ValueError(
            f"model.attn_implementation = {implementation} needs the package "
            f"{_PACKAGES[implementation]}; valid without it: auto, sdpa"
        )
    return implementation, _flash_attention(implementation)


def sdpa(
    q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, documents: Documents | None = None
) -> Tensor:
    """PyTorch's scaled_dot_product_attention; kv heads are shared, never expanded. Of documents
    one after another."""
    if documents is not None:
        packed = zip(*(x.split(1) for x in (q_BSHK, k_BSGK, v_BSGK)), documents.starts, strict=True)
        return torch.cat([_of_each(q, k, v, starts) for q, k, v, starts in packed])
    o_BHSK = F.scaled_dot_product_attention(
        q_BSHK.transpose(1, 2),
        k_BSGK.transpose(1, 2),
        v_BSGK.transpose(1, 2),
        is_causal=True,
        enable_gqa=q_BSHK.shape[2] != k_BSGK.shape[2],
    )
    return o_BHSK.transpose(1, 2)


def _of_each(q_1SHK: Tensor, k_1SGK: Tensor, v_1SGK: Tensor, starts: tuple[int, ...]) -> Tensor:
    """Attention of one sequence's documents."""
    lengths = np.diff([*starts, q_1SHK.shape[1]]).tolist()
    each = zip(*(x.split(lengths, dim=1) for x in (q_1SHK, k_1SGK, v_1SGK)), strict=True)
    return torch.cat([sdpa(*document) for document in each], dim=1)


@dataclass(frozen=True)
class CausalAttention:
    """Causal attention of whole sequences, which may be packed, with its log-sum-exp.

    Attributes:
        forward: (q_BSHK, k_BSGK, v_BSGK, documents) -> (o_BSHK, logsumexp_BHS).
        backward: (grad_o, q, k, v, o, logsumexp, documents) -> gradients of q, k and v.
    """

    forward: Callable[[Tensor, Tensor, Tensor, Documents | None], tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def local_attention(blocks: BlockAttention) -> CausalAttention:
    """Attention over sequences that this rank holds whole."""

    def spans(q: Tensor, documents: Documents | None) -> Iterable[Span] | None:
        if documents is None:
            return None
        tokens = np.arange(q.shape[1])
        return documents.spans(tokens, tokens)

    def forward(
        q: Tensor, k: Tensor, v: Tensor, documents: Documents | None
    ) -> tuple[Tensor, Tensor]:
        return blocks.forward_within(spans(q, documents), q, k, v, True)

    def backward(
        grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor,
        documents: Documents | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        within = spans(q, documents)
        return blocks.backward_within(within, grad_o, q, k, v, o, logsumexp, True)

    return CausalAttention(forward, backward)


def differentiable(attention: CausalAttention) -> Attend:
    """That attention for autograd; keeps q, k, v, o and the log-sum-exp.

    torch.compile goes around it.
    """

    def attend(
        q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        return _Attention.apply(q_BSHK, k_BSGK, v_BSGK, attention, documents)

    return torch.compiler.disable(attend)  # pyright: ignore[reportReturnType]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attention: CausalAttention,
        documents: Documents | None,
    ) -> Tensor:
        o, logsumexp = attention.forward(q, k, v, documents)
        ctx.save_for_backward(q, k, v, o, logsumexp)
        ctx.inputs = attention, documents
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_o,), (q, k, v, o, logsumexp) = grads, ctx.saved_tensors
        attention, documents = ctx.inputs
        return *attention.backward(grad_o, q, k, v, o, logsumexp, documents), None, None


@lru_cache(maxsize=1)
def _cpu_sdpa() -> Attend:
    """As :func:`sdpa`; of documents with one tensor for all, not one each and then all.

    Made when it is first asked for: going around torch.compile imports its second of modules.
    """
    packed = differentiable(local_attention(CPU_FLASH))

    def attend(
        q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        if documents is None:
            return sdpa(q_BSHK, k_BSGK, v_BSGK)
        return packed(q_BSHK, k_BSGK, v_BSGK, documents=documents)

    return attend


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[B, S, F·K], heads side by side, as [B, S, F, K]; what has that shape stays as it is."""
    return x if x.dim() == 4 else x.unflatten(-1, (-1, head_dim))


def _is_installed(implementation: str) -> bool:
    return importlib.util.find_spec(_PACKAGES[implementation]) is not None


def _flash_attention(implementation: str) -> Attend:
    module = importlib.import_module(_PACKAGES[implementation])

    def attend(
        q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        if documents is None:
            return module.flash_attn_func(q_BSHK, k_BSGK, v_BSGK, causal=True)
        shape = q_BSHK.shape[:2]
        ends, longest = _cumulated(documents, shape[1], q_BSHK.device)
        flat = (x.flatten(0, 1) for x in (q_BSHK, k_BSGK, v_BSGK))
        o = module.flash_attn_varlen_func(*flat, ends, ends, longest, longest, causal=True)
        return o.unflatten(0, shape)

    return attend


@lru_cache(maxsize=8)
def _cumulated(documents: Documents, tokens: int, device: torch.device) -> tuple[Tensor, int]:
    """Ends of all documents in a batch laid end to end, from 0, and the longest one's length."""
    rows = enumerate(documents.starts)
    ends = [row * tokens + start for row, starts in rows for start in starts]
    ends = [*ends, len(documents.starts) * tokens]
    return torch.tensor(ends, dtype=torch.int32, device=device), int(np.diff(ends).max())
