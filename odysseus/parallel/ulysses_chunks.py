"""Ulysses attention a few heads at a time (Untied Ulysses, arXiv 2602.21196).

Of every chunk of heads, q, k and v are projected, exchanged for tokens, attended and freed before
the next chunk's are made; k and v stay for the query heads that share them. Backward does so again:
it keeps the block's input, the output by heads and its log-sum-exp, and no q, k or v. Norm and
projections run in tiles of tokens, straight into what is sent.

B batch, s tokens of this rank, S of all, D width, H query heads, G kv heads, h and g those of one
chunk on one rank, K elements of a head, n ranks of the sequence axis, F heads packed: H + 2G.
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
from odysseus.model.kernels import Kernels, check_blocks
from odysseus.model.layers import RMSNorm
from odysseus.parallel import collectives, transfers
from odysseus.parallel.mesh import Axis


def check(run: RunConfig, device: torch.device) -> None:
    """Raise ValueError if a run's chunks of heads have no kernel on a device.

    Sizes are the method's to check.
    """
    if run.ulysses_head_chunks == 1:
        return
    if run.ring_parallel_size > 1 and run.ring_backend == "yunchang":
        raise ValueError(
            f"ring_backend = yunchang does not know ulysses_head_chunks = "
            f"{run.ulysses_head_chunks}; valid: native, allgather"
        )
    check_blocks(run, device, "ulysses_head_chunks")


@dataclass(frozen=True)
class Part:
    """Every rank's index-th chunk of its heads, where heads first to last lie rank by rank.

    Attributes:
        first: Of the packed heads, where these begin, and `last` where they end.
        owners: Ranks that the heads are divided among; others have copies.
        chunks: Chunks of one rank's heads, of which this is number `index`.
    """

    first: int
    last: int
    owners: int
    chunks: int
    index: int

    @property
    def heads(self) -> int:
        """Of all ranks."""
        return (self.last - self.first) // self.chunks

    def rows(self, packed: Tensor, head_dim: int) -> Tensor:
        """This part's rows of a weight [F·K, D] or a bias [F·K]."""
        heads = packed.unflatten(0, (-1, head_dim))[self.first : self.last]
        return heads.unflatten(0, (self.owners, self.chunks, -1))[:, self.index].flatten(0, 2)

    def of(self, x_BsHK: Tensor) -> Tensor:
        """[owners, B, s, h, K]: a view of this part of heads that begin at `first`."""
        x_BsnchK = x_BsHK.unflatten(2, (self.owners, self.chunks, -1))
        return x_BsnchK[:, :, :, self.index].movedim(2, 0)


class ChunkedAttention(Attention):
    """Attention with whole weights, over heads that a sequence axis exchanges chunk by chunk."""

    def __init__(
        self, architecture: Architecture, kernels: Kernels, axis: Axis, chunks: int
    ) -> None:
        super().__init__(architecture, kernels)
        assert kernels.attention_with_lse is not None, "as check has made sure"
        self.attention_with_lse: CausalAttention = kernels.attention_with_lse
        self.axis = axis
        owners = min(axis.size, self.kv_heads)
        kv_chunks = min(chunks, self.kv_heads // owners)
        self.chunks: list[tuple[list[Part], list[Part]]] = []
        """Parts k and v, and the parts q that look at them."""
        ends = self.heads, self.heads + self.kv_heads, self.heads + 2 * self.kv_heads
        for j in range(kv_chunks):
            of_kv = [Part(*part, owners, kv_chunks, j) for part in (ends[:2], ends[1:])]
            shared = chunks // kv_chunks
            of_q = [
                Part(0, ends[0], axis.size, chunks, c) for c in range(j * shared, (j + 1) * shared)
            ]
            self.chunks.append((of_kv, of_q))

    def attend(
        self, norm: RMSNorm, x_BSD: Tensor, table: Tensor, documents: Documents | None
    ) -> Tensor:
        """As :meth:`Attention.attend`."""
        parts = [norm, self.qkv_proj, self.q_norm, self.k_norm]
        parameters = [p for part in parts if part is not None for p in part.parameters()]
        trained = [p for p in parameters if p.requires_grad]
        attend: Callable[..., Tensor]
        attend = torch.compiler.disable(_Chunked.apply)  # pyright: ignore[reportAssignmentType]
        return attend(x_BSD, table.movedim(0, 2), self, norm, documents, trained, *trained)

    def to_heads(
        self, norm: RMSNorm, x_BsD: Tensor, table_Bs2: Tensor, parts: list[Part]
    ) -> tuple[Tensor, ...]:
        """[B, S, h, K] of each part, either q or k and v, projected and exchanged."""
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
            turned = self.split_and_rotate(qkv_BtW, table_Bt2.movedim(2, 0), *heads)
            of_ranks = [collectives.heads_by_rank(x, self.axis.size) for x in turned if x.shape[2]]
            sent_BtnfK.copy_(torch.cat(of_ranks, dim=3).movedim(0, 2))
        return self.exchange_to_heads(sent_nBsfK).split(each, dim=2)

    def exchange_to_heads(self, sent_nBsfK: Tensor) -> Tensor:
        """[B, S, f, K] of this rank's heads from every rank's tokens."""
        return transfers.unstack(collectives.all_to_all(sent_nBsfK, self.axis), 1)

    def to_tokens(self, x_BSfK: Tensor) -> Tensor:
        """[n, B, s, f, K] of this rank's tokens from every rank's heads."""
        sent_nBsfK = transfers.stack(x_BSfK, self.axis.size, 1)
        return collectives.all_to_all(sent_nBsfK, self.axis)


def _tile_count(x_BsD: Tensor) -> int:
    """Tiles of 8·D tokens: a projection to heads is an eighth as wide as a SwiGLU's tensors."""
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
                part.of(o_BsHK).copy_(a.to_tokens(kept[-2]))
            del k_BSgK, v_BSgK
        ctx.save_for_backward(x_BsD, table_Bs2, *kept)
        ctx.of = a, norm, documents, trained
        return o_BsHK.flatten(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BsD, table_Bs2, *kept = ctx.saved_tensors
        a, norm, documents, trained = ctx.of
        # The gradient of o becomes that of q, chunk by chunk: it is the output projection's, which
        # nobody else reads.
        grad_q_BsHK = grads[0].contiguous().unflatten(2, (a.heads, a.head_dim))
        shape = (*x_BsD.shape[:2], a.kv_heads, a.head_dim)
        grad_kv_BsGK = [x_BsD.new_empty(shape) for _ in range(2)]
        attended = _Attended(a, norm, documents, x_BsD, table_Bs2, grad_q_BsHK)
        outputs = iter(zip(kept[::2], kept[1::2], strict=True))
        for of_kv, of_q in a.chunks:
            attended.backward_of_kv(of_kv, of_q, outputs, grad_kv_BsGK)
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
class _Attended:
    """The backward of the chunks; the gradient of q takes the place of o's."""

    attention: ChunkedAttention
    norm: RMSNorm
    documents: Documents | None
    x_BsD: Tensor
    table_Bs2: Tensor
    grad_q_BsHK: Tensor

    def to_heads(self, parts: list[Part]) -> tuple[Tensor, ...]:
        return self.attention.to_heads(self.norm, self.x_BsD, self.table_Bs2, parts)

    def backward_of_kv(
        self,
        of_kv: list[Part],
        of_q: list[Part],
        outputs: Iterator[tuple[Tensor, Tensor]],
        grad_kv_BsGK: list[Tensor],
    ) -> None:
        """Fill in the gradients of one chunk's k and v and of the q that look at them.

        Query heads that share k and v add to their gradients in at least fp32.
        """
        k_BSgK, v_BSgK = self.to_heads(of_kv)
        dtype = k_BSgK.dtype
        wide = torch.promote_types(dtype, torch.float32) if len(of_q) > 1 else dtype
        sums: list[Tensor] = []
        for part in of_q:
            sums = _add(sums, self.backward_of_q(part, k_BSgK, v_BSgK, *next(outputs)), wide)
        del k_BSgK, v_BSgK
        grad_nBsfK = self.attention.to_tokens(torch.cat(sums, dim=2).to(dtype))
        found = grad_nBsfK.chunk(2, dim=3)
        for part, grad_BsGK, grad_nBsgK in zip(of_kv, grad_kv_BsGK, found, strict=True):
            # A kv head that several ranks have looked at gets all their gradients.
            part.of(grad_BsGK).copy_(grad_nBsgK.unflatten(0, (part.owners, -1)).sum(1))

    def backward_of_q(
        self, part: Part, k_BSgK: Tensor, v_BSgK: Tensor, o_BShK: Tensor, logsumexp: Tensor
    ) -> list[Tensor]:
        """Fill in the gradient of one chunk's q; those of the k and v that it looks at."""
        (q_BShK,) = self.to_heads([part])
        grad_nBshK = part.of(self.grad_q_BsHK)
        grad_o_BShK = self.attention.exchange_to_heads(grad_nBshK.contiguous())
        grad_q_BShK, *grad_kv = self.attention.attention_with_lse.backward(
            grad_o_BShK, q_BShK, k_BSgK, v_BSgK, o_BShK, logsumexp, self.documents
        )
        del q_BShK, grad_o_BShK
        grad_nBshK.copy_(self.attention.to_tokens(grad_q_BShK))
        return grad_kv


def _add(sums: list[Tensor], found: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """What was found, in this dtype, or added to the sums."""
    if not sums:
        return [x.to(dtype) for x in found]
    return [total.add_(x) for total, x in zip(sums, found, strict=True)]
