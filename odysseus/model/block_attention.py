"""Attention to one block of the keys, with its log-sum-exp, by the kernels of PyTorch and of
FlashAttention's packages.

B batch, S query tokens, T key tokens, H query heads, G kv heads, K elements per head.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odysseus.model.documents import Documents, Span


@dataclass(frozen=True)
class BlockAttention:
    """Attention to one block of the keys; results of several blocks merge by their log-sum-exp.

    Attributes:
        forward: (q_BSHK, k_BTGK, v_BTGK, causal) -> (o_BSHK, logsumexp_BHS), the latter in at
            least fp32. `causal` masks the keys after a query's own; it needs S = T.
        backward: (grad_o, q, k, v, o, logsumexp, causal) -> gradients of q, k and v. Given `o` and
            the log-sum-exp over more keys, it returns this block's part of those gradients.
    """

    forward: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]

    @property
    def of_parts(self) -> BlockAttention:
        """The kernel for parts of blocks, which have many shapes: documents and windows."""
        return self

    def spans(
        self,
        documents: Documents | None,
        batch: int,
        positions: Callable[[], tuple[np.ndarray, np.ndarray]],
    ) -> Iterable[Any] | None:
        """The parts of a block that :meth:`forward_within` computes one by one; None if it is one.

        Args:
            documents: The documents of the whole sequences.
            batch: Number of sequences.
            positions: Returns the positions in the sequence of the block's queries and of its keys.
        """
        return None if documents is None else documents.spans(*positions())

    def forward_within(
        self, spans: Iterable[Span] | None, q: Tensor, k: Tensor, v: Tensor, causal: bool
    ) -> tuple[Tensor, Tensor]:
        """Apply `forward` of the parts to each span of a document; without spans, this one's to all
        tokens.

        A query that sees no key gets o = 0 and a log-sum-exp of minus infinity.
        """
        if spans is None:
            return self.forward(q, k, v, causal)
        o = torch.zeros_like(q)
        wide = torch.promote_types(q.dtype, torch.float32)
        logsumexp = q.new_full((q.shape[0], q.shape[2], q.shape[1]), -torch.inf, dtype=wide)
        for span in spans:
            at_q, at_k = (span.row, span.queries), (span.row, span.keys)
            o[at_q], logsumexp[span.row, :, span.queries] = self.of_parts.forward(
                q[at_q], k[at_k], v[at_k], causal
            )
        return o, logsumexp

    def backward_within(
        self, spans: Iterable[Span] | None, grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor,
        o: Tensor, logsumexp: Tensor, causal: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Apply `backward` as :meth:`forward_within` applies `forward`."""
        if spans is None:
            return self.backward(grad_o, q, k, v, o, logsumexp, causal)
        grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for span in spans:
            at_q, at_k = (span.row, span.queries), (span.row, span.keys)
            outputs = o[at_q], logsumexp[span.row, :, span.queries]
            given = grad_o[at_q], q[at_q], k[at_k], v[at_k], *outputs
            of_span = self.of_parts.backward(*given, causal)
            for gradient, at, part in zip(grads, (at_q, at_k, at_k), of_span, strict=True):
                gradient[at] = part
        return grads


def merge_(
    o_SHK: Tensor, logsumexp_HS: Tensor, part_SHK: Tensor, part_logsumexp_HS: Tensor
) -> None:
    """Merge attention to more keys into `o` and its log-sum-exp, in place.

    All have the same leading dimensions; `o` may see no key yet.
    """
    share_HS = torch.sigmoid(part_logsumexp_HS - logsumexp_HS)
    o_SHK.lerp_(part_SHK.to(o_SHK.dtype), share_HS.transpose(-2, -1).unsqueeze(-1))
    logsumexp_HS.copy_(torch.logaddexp(logsumexp_HS, part_logsumexp_HS))


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    return o.transpose(1, 2), logsumexp


def _cpu_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_o, q, k, v, o = (x.transpose(1, 2) for x in (grad_o, q, k, v, o))
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_o, q, k, v, o, logsumexp, 0.0, causal
    )
    grad_q, grad_k, grad_v = (x.transpose(1, 2) for x in grads)
    return grad_q, grad_k, grad_v


CPU_FLASH = BlockAttention(_cpu_forward, _cpu_backward)
"""PyTorch's flash attention for CPUs."""


def _cuda_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, logsumexp, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
    return o.transpose(1, 2), logsumexp


def _cuda_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, keys = q.shape[1], k.shape[1]
    grad_o, q, k, v, o = (x.transpose(1, 2) for x in (grad_o, q, k, v, o))
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, which is off
    grads = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        *(grad_o, q, k, v, o, logsumexp.contiguous()),
        *(None, None, tokens, keys, 0.0, causal, seed, seed[0]),
    )
    grad_q, grad_k, grad_v = (x.transpose(1, 2) for x in grads)
    return grad_q, grad_k, grad_v


CUDA_FLASH = BlockAttention(_cuda_forward, _cuda_backward)
"""FlashAttention-2 as PyTorch ships it."""


class _CuDNNAttention(BlockAttention):
    """cuDNN's attention, which makes and keeps a plan for every shape that it meets."""

    @property
    def of_parts(self) -> BlockAttention:
        return CUDA_FLASH


def _cudnn_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    if 1 in (q.shape[1], k.shape[1]):  # cuDNN has no kernel for one token
        return _cuda_forward(q, k, v, causal)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, logsumexp_BHS1, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *(q, k, v, None, True, 0.0, causal)
    )
    return o.transpose(1, 2), logsumexp_BHS1.squeeze(-1)


def _cudnn_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, keys = q.shape[1], k.shape[1]
    if 1 in (tokens, keys):
        return _cuda_backward(grad_o, q, k, v, o, logsumexp, causal)
    # A plan is found again by the strides of q, k and v alone.
    grad_o, o = grad_o.contiguous(), o.contiguous()
    grad_o, q, k, v, o = (x.transpose(1, 2) for x in (grad_o, q, k, v, o))
    seed = torch.zeros((), dtype=torch.int64, device=q.device)  # of dropout, which is off
    grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *(grad_o, q, k, v, o, logsumexp.contiguous().unsqueeze(-1), seed, seed),
        *(None, None, None, tokens, keys, 0.0, causal),
    )
    grad_q, grad_k, grad_v = (x.transpose(1, 2) for x in grads)
    return grad_q, grad_k, grad_v


def _flash_2_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    kernels = importlib.import_module("flash_attn.flash_attn_interface")
    scale = q.shape[-1] ** -0.5
    o, logsumexp, *_ = kernels._flash_attn_forward(
        *(q, k, v, 0.0, scale, causal),
        **{"window_size_left": -1, "window_size_right": -1, "softcap": 0.0},
        **{"alibi_slopes": None, "return_softmax": False},
    )
    return o, logsumexp


def _flash_2_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = importlib.import_module("flash_attn.flash_attn_interface")
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    kernels._flash_attn_backward(
        *(grad_o.contiguous(), q, k, v, o, logsumexp.contiguous(), *grads),
        *(0.0, q.shape[-1] ** -0.5, causal, -1, -1, 0.0, None, False),
    )
    return grads


_OF_INFERENCE = (
    *("k_new", "v_new", "qv", "out", "cu_seqlens_q", "cu_seqlens_k", "cu_seqlens_k_new"),
    *("seqused_q", "seqused_k", "max_seqlen_q", "max_seqlen_k", "page_table", "kv_batch_idx"),
    *("leftpad_k", "rotary_cos", "rotary_sin", "seqlens_rotary"),
    *("q_descale", "k_descale", "v_descale"),
)
"""Arguments of FlashAttention-3 for caches of keys, ragged batches and fp8."""


def _flash_3_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    kernels = importlib.import_module("flash_attn_interface")
    o, logsumexp, *_ = kernels._flash_attn_forward(
        *(q, k, v),
        **dict.fromkeys(_OF_INFERENCE),
        softmax_scale=q.shape[-1] ** -0.5,
        causal=causal,
    )
    return o, logsumexp


def _flash_3_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = importlib.import_module("flash_attn_interface")
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    ragged = [None] * 6
    kernels._flash_attn_backward(
        *(grad_o.contiguous(), q, k, v, o, logsumexp.contiguous(), *ragged, *grads),
        *(q.shape[-1] ** -0.5, causal),
    )
    return grads


PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Packages of FlashAttention's authors."""
_OF_PACKAGES = {
    "flash_attention_2": BlockAttention(_flash_2_forward, _flash_2_backward),
    "flash_attention_3": BlockAttention(_flash_3_forward, _flash_3_backward),
}
OF_PYTORCH = {
    "sdpa": CUDA_FLASH,
    "flash_attention_2": CUDA_FLASH,
    "cudnn": _CuDNNAttention(_cudnn_forward, _cudnn_backward),
}
"""PyTorch's own block kernels on CUDA."""


def is_installed(name: str) -> bool:
    """Whether a package of FlashAttention's authors computes the attention of this name."""
    return name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is not None


def choose_block_attention(name: str, device: torch.device) -> BlockAttention:
    """Return the block kernel for a name that :func:`choose_attention` returned."""
    if device.type == "cpu":
        return CPU_FLASH
    return _OF_PACKAGES[name] if is_installed(name) else OF_PYTORCH[name]
