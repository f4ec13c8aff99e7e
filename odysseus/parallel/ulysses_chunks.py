"""Ulysses attention a few heads at a time (Untied Ulysses, arXiv 2602.21196).

The q, k and v of one chunk of heads are projected, exchanged for tokens, used by attention and
freed before the next chunk is projected. k and v stay for all query heads that share them. Backward
does the same again: autograd keeps the block's input, the output per head and its log-sum-exp, but
no q, k or v. Norm and projections run in tiles of tokens and write into the buffer that is sent.

B batch, s tokens of this rank, S of all ranks, t of a tile, D width, H query heads, G kv heads, h
and g those of one chunk on one rank, K elements of a head, n ranks of the sequence axis, F packed
heads: H + 2G, f those of one chunk on one rank, W the width of a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odysseus.config.architecture import Architecture
from odysseus.config.run import RunConfig
from odysseus.memory.tiling import Tiles, cut, tile_count
from odysseus.model.attention import CausalAttention
from odysseus.model.decoder import Attention
from odysseus.model.documents import Documents
from odysseus.model.kernels import Kernels, check_flash
from odysseus.model.layers import RMSNorm
from odysseus.parallel import collectives, transfers
from odysseus.parallel.mesh import Axis


def check(run: RunConfig, device: torch.device) -> None:
    """Raise ValueError if a run's chunks of heads have no kernel on a device.

    The method checks the sizes.
    """
    if run.ulysses_head_chunks == 1:
        return
    if run.ring_parallel_size > 1 and run.ring_backend == "yunchang":
        raise ValueError(
            f"ring_backend = yunchang does not know ulysses_head_chunks = "
            f"{run.ulysses_head_chunks}; valid: native, allgather"
        )
    if device.type == "cuda":
        check_flash(run, "ulysses_head_chunks")


@dataclass(frozen=True)
class HeadChunk:
    """One chunk of the heads of every rank, among the packed heads [first, last).

    These heads are in the order of the ranks.

    Attributes:
        first: Index of the first of these packed heads.
        last: Index after the last of them.
        owners: Number of ranks that the heads are divided among; the other ranks have copies.
        chunks: Number of chunks that one rank's heads are divided into.
        index: Index of this chunk among them.
    """

    first: int
    last: int
    owners: int
    chunks: int
    index: int

    @property
    def heads(self) -> int:
        """Number of heads in this chunk, of all ranks."""
        return (self.last - self.first) // self.chunks

    def rows(self, packed: Tensor, head_dim: int) -> Tensor:
        """The rows of this chunk in a weight [F·K, D] or a bias [F·K]."""
        heads = packed.unflatten(0, (-1, head_dim))[self.first : self.last]
        return heads.unflatten(0, (self.owners, self.chunks, -1))[:, self.index].flatten(0, 2)

    def view(self, x_BsHK: Tensor) -> Tensor:
        """[owners, B, s, h, K]: a view of this chunk in a tensor of the heads [first, last)."""
        x_BsnchK = x_BsHK.unflatten(2, (self.owners, self.chunks, -1))
        return x_BsnchK[:, :, :, self.index].movedim(2, 0)


class ChunkedAttention(Attention):
    """Attention with whole weights that exchanges its heads for tokens chunk by chunk."""

    def __init__(
        self, architecture: Architecture, kernels: Kernels, axis: Axis, chunks: int
    ) -> None:
        super().__init__(architecture, kernels)
        assert kernels.attention_with_lse is not None, "check has refused it"
        self.attention_with_lse: CausalAttention = kernels.attention_with_lse
        self.axis = axis
        owners = min(axis.size, self.kv_heads)
        kv_chunks = min(chunks, self.kv_heads // owners)
        self.chunks: list[tuple[list[HeadChunk], list[HeadChunk]]] = []
        """Chunks of k and v, with the chunks of q that attend to them."""
        queries = 0, self.heads
        keys = self.heads, self.heads + self.kv_heads
        values = keys[1], keys[1] + self.kv_heads
        sharing = chunks // kv_chunks
        for j in range(kv_chunks):
            of_kv = [HeadChunk(*heads, owners, kv_chunks, j) for heads in (keys, values)]
            of_q = [
                HeadChunk(*queries, axis.size, chunks, c)
                for c in range(j * sharing, (j + 1) * sharing)
            ]
            self.chunks.append((of_kv, of_q))

    def attend(
        self, norm: RMSNorm, x_BSD: Tensor, table: Tensor, documents: Documents | None
    ) -> Tensor:
        """[B, s, H·K]: :meth:`Attention.attend`, chunk by chunk."""
        modules = [norm, self.qkv_proj, self.q_norm, self.k_norm]
        parameters = [p for module in modules if module is not None for p in module.parameters()]
        trained = [p for p in parameters if p.requires_grad]
        attend: Callable[..., Tensor]
        attend = torch.compiler.disable(_Chunked.apply)  # pyrefly: ignore
        return attend(x_BSD, table.movedim(0, 2), self, norm, documents, trained, *trained)

    def to_heads(
        self, norm: RMSNorm, x_BsD: Tensor, table_Bs2: Tensor, parts: list[HeadChunk]
    ) -> tuple[Tensor, ...]:
        """[B, S, h, K] per chunk: project a chunk of q, or chunks of k and v, and exchange them."""
        project = self.qkv_proj
        weight = torch.cat([part.rows(project.weight, self.head_dim) for part in parts])
        bias = project.bias
        if bias is not None:
            bias = torch.cat([part.rows(bias, self.head_dim) for part in parts])
        heads = (parts[0].heads, 0) if len(parts) == 1 else (0, parts[0].heads)
        each = max(1, parts[0].heads // self.axis.size)
        shape = (*x_BsD.shape[:2], len(parts) * each, self.head_dim)
        sent_nBsfK = x_BsD.new_empty((self.axis.size, *shape))
        for sent_BtnfK, x_BtD, table_Bt2 in cut(
            _tile_count(x_BsD), sent_nBsfK.movedim(0, 2), x_BsD, table_Bs2
        ):
            qkv_BtW = project.project(norm(x_BtD), weight, bias).wait()
            rotated = self.split_and_rotate(qkv_BtW, table_Bt2.movedim(2, 0), *heads)
            by_rank = [collectives.heads_by_rank(x, self.axis.size) for x in rotated if x.shape[2]]
            sent_BtnfK.copy_(torch.cat(by_rank, dim=3).movedim(0, 2))
        return self.exchange_to_heads(sent_nBsfK).split(each, dim=2)

    def exchange_to_heads(self, sent_nBsfK: Tensor) -> Tensor:
        """[B, S, f, K]: receive every rank's tokens of this rank's heads."""
        return transfers.unstack(collectives.all_to_all(sent_nBsfK, self.axis), 1)

    def to_tokens(self, x_BSfK: Tensor) -> Tensor:
        """[n, B, s, f, K]: receive every rank's heads of this rank's tokens."""
        sent_nBsfK = transfers.stack(x_BSfK, self.axis.size, 1)
        return collectives.all_to_all(sent_nBsfK, self.axis)


def _tile_count(x_BsD: Tensor) -> int:
    """Number of tiles, sized as for a width of 8·D: a SwiGLU's tensors are 8 times as wide as a
    projection to heads."""
    batch, tokens, width = x_BsD.shape
    return tile_count(batch, tokens, 8 * width)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BsD: Tensor,
        table_Bs2: Tensor,
        a: ChunkedAttention,
        norm: RMSNorm,
        documents: Documents | None,
        trained: list[nn.Parameter],
        *_: Tensor,
    ) -> Tensor:
        o_BsHK = x_BsD.new_empty((*x_BsD.shape[:2], a.heads, a.head_dim))
        kept = []
        for of_kv, of_q in a.chunks:
            k_BSgK, v_BSgK = a.to_heads(norm, x_BsD, table_Bs2, of_kv)
            for part in of_q:
                (q_BShK,) = a.to_heads(norm, x_BsD, table_Bs2, [part])
                kept += a.attention_with_lse.forward(q_BShK, k_BSgK, v_BSgK, documents)
                del q_BShK
                part.view(o_BsHK).copy_(a.to_tokens(kept[-2]))
            del k_BSgK, v_BSgK
        ctx.save_for_backward(x_BsD, table_Bs2, *kept)
        ctx.inputs = a, norm, documents, trained
        return o_BsHK.flatten(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BsD, table_Bs2, *kept = ctx.saved_tensors
        a, norm, documents, trained = ctx.inputs
        # The gradient of q replaces that of o, chunk by chunk. The output projection has made the
        # latter, and no other code reads it.
        grad_q_BsHK = grads[0].contiguous().unflatten(2, (a.heads, a.head_dim))
        shape = (*x_BsD.shape[:2], a.kv_heads, a.head_dim)
        grad_kv_BsGK = [x_BsD.new_empty(shape) for _ in range(2)]
        chunk_backward = _ChunkBackward(a, norm, documents, x_BsD, table_Bs2, grad_q_BsHK)
        outputs = iter(zip(kept[::2], kept[1::2], strict=True))
        for of_kv, of_q in a.chunks:
            chunk_backward.backward_of_kv(of_kv, of_q, outputs, grad_kv_BsGK)
        del kept, outputs
        grad_x_BsD = torch.empty_like(x_BsD)

        def heads_of(x_BtD: Tensor, table_Bt2: Tensor) -> tuple[Tensor, ...]:
            qkv_BtW = a.qkv_proj(norm(x_BtD))
            return a.split_and_rotate(qkv_BtW, table_Bt2.movedim(2, 0), a.heads, a.kv_heads)

        tiles, sums = Tiles(heads_of, trained, _tile_count(x_BsD)), []
        for x, table, *grads_t, grad_x in tiles.split(
            x_BsD, table_Bs2, grad_q_BsHK, *grad_kv_BsGK, grad_x_BsD
        ):
            tiles.backward([x, table], grads_t, [grad_x], sums)
        return grad_x_BsD, None, None, None, None, None, *tiles.rounded_gradients(sums)


@dataclass(frozen=True)
class _ChunkBackward:
    """The backward of one chunk after another; the gradient of q replaces that of o in place."""

    attention: ChunkedAttention
    norm: RMSNorm
    documents: Documents | None
    x_BsD: Tensor
    table_Bs2: Tensor
    grad_q_BsHK: Tensor

    def to_heads(self, parts: list[HeadChunk]) -> tuple[Tensor, ...]:
        return self.attention.to_heads(self.norm, self.x_BsD, self.table_Bs2, parts)

    def backward_of_kv(
        self,
        of_kv: list[HeadChunk],
        of_q: list[HeadChunk],
        outputs: Iterator[tuple[Tensor, Tensor]],
        grad_kv_BsGK: list[Tensor],
    ) -> None:
        """Fill in the gradients of one chunk's k and v, and of the q that attend to them.

        Query heads that share k and v sum their gradients in at least fp32.
        """
        k_BSgK, v_BSgK = self.to_heads(of_kv)
        dtype = k_BSgK.dtype
        wide = torch.promote_types(dtype, torch.float32) if len(of_q) > 1 else dtype
        sums: list[Tensor] = []
        for part in of_q:
            sums = _accumulate(sums, self.backward_of_q(part, k_BSgK, v_BSgK, *next(outputs)), wide)
        del k_BSgK, v_BSgK
        grad_nBsfK = self.attention.to_tokens(torch.cat(sums, dim=2).to(dtype))
        grads = grad_nBsfK.chunk(2, dim=3)
        for part, grad_BsGK, grad_nBsgK in zip(of_kv, grad_kv_BsGK, grads, strict=True):
            # A kv head that several ranks attend to gets the sum of their gradients.
            part.view(grad_BsGK).copy_(grad_nBsgK.unflatten(0, (part.owners, -1)).sum(1))

    def backward_of_q(
        self, part: HeadChunk, k_BSgK: Tensor, v_BSgK: Tensor, o_BShK: Tensor, logsumexp: Tensor
    ) -> list[Tensor]:
        """Fill in the gradient of one chunk's q; return those of its k and v."""
        (q_BShK,) = self.to_heads([part])
        grad_nBshK = part.view(self.grad_q_BsHK)
        grad_o_BShK = self.attention.exchange_to_heads(grad_nBshK.contiguous())
        grad_q_BShK, *grad_kv = self.attention.attention_with_lse.backward(
            grad_o_BShK, q_BShK, k_BSgK, v_BSgK, o_BShK, logsumexp, self.documents
        )
        del q_BShK, grad_o_BShK
        grad_nBshK.copy_(self.attention.to_tokens(grad_q_BShK))
        return grad_kv


def _accumulate(sums: list[Tensor], grads: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Add gradients to the sums in place; without sums, start them in this dtype."""
    if not sums:
        return [grad.to(dtype) for grad in grads]
    return [total.add_(grad) for total, grad in zip(sums, grads, strict=True)]
