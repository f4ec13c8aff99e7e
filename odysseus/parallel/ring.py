"""Ring attention: causal attention over a sequence that is split over the ranks of a ring.

Keys and values travel, queries stay (Liu et al., arXiv 2310.01889). Each ring rank merges the
outputs of one block of keys after another by their log-sum-exp (Dao et al., arXiv 2205.14135 §3.1),
in at least fp32. Gradients of keys and values are sent in that dtype too; otherwise the error would
grow with the ring. B batch, S tokens of this ring rank, T of some keys, H query heads, G kv heads,
K elements of a head; 2 is keys and values.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from odysseus.config.parallelism import Parallelism
from odysseus.config.run import RunConfig
from odysseus.model.attention import CausalAttention, differentiable
from odysseus.model.block_attention import BlockAttention, merge_
from odysseus.model.documents import Documents
from odysseus.model.kernels import Kernels, check_flash
from odysseus.parallel import transfers
from odysseus.parallel.mesh import Axis
from odysseus.parallel.ring_order import (
    VisibleBlock,
    positions_of,
    visible_block,
    visible_in_sequence,
)
from odysseus.parallel.yunchang import yunchang_ring

ProcessBlock = Callable[[VisibleBlock, Tensor], None]
"""process_block(block, kv_2BTGK): attend to these keys and values."""
DifferentiateBlock = Callable[[VisibleBlock, Tensor], Tensor]
"""differentiate_block(block, kv_2BTGK) -> the gradient of these, in at least fp32."""


class Exchange(Protocol):
    """A way to bring the keys and values of all ring ranks to this rank's queries."""

    @property
    def axis(self) -> Axis: ...
    @property
    def order(self) -> str: ...

    def forward(self, kv_2BSGK: Tensor, process_block: ProcessBlock) -> None:
        """Process this rank's own keys and values first, then all others that its tokens see."""
        ...

    def backward(self, kv_2BSGK: Tensor, differentiate_block: DifferentiateBlock) -> Tensor:
        """Exchange the keys and values again and return the gradient of this rank's own, summed
        over all ring ranks, in at least fp32."""
        ...


_FLASH = ("auto", "flash_attention_2")


def check(run: RunConfig, device: torch.device) -> None:
    """Raise ValueError if a run's ring has no kernel on a device.

    :meth:`RunConfig.check` checks the sizes.
    """
    if run.token_axes.ring == 1:
        return
    if run.ring_backend == "yunchang" and device.type != "cuda":
        raise ValueError(
            f"ring_backend = yunchang needs CUDA; valid on {device.type}: native, allgather"
        )
    if run.ring_backend == "yunchang" and importlib.util.find_spec("flash_attn") is None:
        raise ValueError(
            "ring_backend = yunchang needs the package flash_attn; "
            "valid without it: native, allgather"
        )
    if run.ring_backend == "yunchang" and run.model.attn_implementation not in _FLASH:
        raise ValueError(
            f"model.attn_implementation = {run.model.attn_implementation} is not what "
            f"ring_backend = yunchang computes with; valid: {', '.join(_FLASH)}"
        )
    if run.ring_backend == "yunchang" and run.data.pack:
        raise ValueError(
            "ring_backend = yunchang does not know data.pack = true; valid: native, allgather"
        )
    if device.type == "cuda":
        check_flash(run, "ring attention")


def choose_ring(run: Parallelism, axis: Axis, kernels: Kernels) -> Kernels:
    """Kernels with the run's attention over the ring axis in place of the given attention."""
    if run.ring_backend == "yunchang":
        return replace(kernels, attend=yunchang_ring(axis, run.ring_order), attention_with_lse=None)
    assert kernels.blocks is not None, "of a device"
    exchange = {"native": RingExchange, "allgather": AllGatherExchange}[run.ring_backend]
    attention = ring_attention(exchange(axis, run.ring_order), kernels.blocks)
    return replace(kernels, attend=differentiable(attention), attention_with_lse=attention)


def ring_attention(exchange: Exchange, blocks: BlockAttention) -> CausalAttention:
    """Causal attention of this rank's queries over the tokens of all ring ranks.

    Args:
        blocks: The kernel that attends to one block of the keys.
    """
    attention = _RingAttention(exchange, blocks)
    return CausalAttention(attention.forward, attention.backward)


@dataclass(frozen=True)
class _RingAttention:
    """The two functions of :class:`CausalAttention`, over a ring."""

    exchange: Exchange
    blocks: BlockAttention

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, documents: Documents | None
    ) -> tuple[Tensor, Tensor]:
        softmax = OnlineSoftmax()

        def process_block(block: VisibleBlock, kv_2BTGK: Tensor) -> None:
            k_BTGK, v_BTGK = kv_2BTGK
            spans, q_BtHK = self._spans(block, q, documents), q[:, block.queries]
            softmax.add(
                block.queries,
                *self.blocks.forward_within(spans, q_BtHK, k_BTGK, v_BTGK, block.causal),
            )

        self.exchange.forward(torch.stack((k, v)), process_block)
        return softmax.out_BSHK.to(q.dtype), softmax.logsumexp_BHS

    def backward(
        self, grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse_BHS: Tensor,
        documents: Documents | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        grad_q = torch.zeros_like(q, dtype=_wide(q))

        def differentiate_block(block: VisibleBlock, kv_2BTGK: Tensor) -> Tensor:
            at = (slice(None), block.queries)
            lse_BHt = lse_BHS[:, :, block.queries]
            k_BTGK, v_BTGK = kv_2BTGK
            # Given the log-sum-exp of all keys, a block's backward is its part of the whole one.
            grad, *grad_kv = self.blocks.backward_within(
                self._spans(block, q, documents),
                *(grad_o[at], q[at], k_BTGK, v_BTGK, o[at], lse_BHt, block.causal),
            )
            grad_q[at].add_(grad)
            return torch.stack(grad_kv).to(grad_q.dtype)

        # No name holds the gradient in the wide dtype, so that it is freed here.
        grad_k, grad_v = self.exchange.backward(torch.stack((k, v)), differentiate_block).to(
            k.dtype
        )
        return grad_q.to(q.dtype), grad_k, grad_v

    def _spans(
        self, block: VisibleBlock, q: Tensor, documents: Documents | None
    ) -> Iterable[Any] | None:
        """The parts of a block that its kernel computes one by one; None if it is one."""
        ring, ring_rank = self.exchange.axis.size, self.exchange.axis.rank
        at = self.exchange.order, q.shape[1] * ring, ring, ring_rank
        return self.blocks.spans(documents, q.shape[0], lambda: positions_of(block, *at))


@dataclass(frozen=True)
class RingExchange:
    """Each ring rank passes its block on to the next while it computes with the block: R-1 hops.

    Only the last hop of the gradients has no computation to hide behind.

    Bytes sent per rank: (R-1)·|kv| forward, as much backward, and (R-1)·|kv| in fp32.
    """

    axis: Axis
    order: str

    def forward(self, kv_2BSGK: Tensor, process_block: ProcessBlock) -> None:
        for block, kv_2BTGK in self._rotate_kv(kv_2BSGK):
            if block is not None:
                process_block(block, kv_2BTGK[:, :, block.keys])

    def backward(self, kv_2BSGK: Tensor, differentiate_block: DifferentiateBlock) -> Tensor:
        blocks = self._rotate_kv(kv_2BSGK)
        own_block, kv_2BTGK = next(blocks)
        assert own_block is not None, "a ring rank sees its own keys"
        own_2BSGK = differentiate_block(own_block, kv_2BTGK)
        hop = None
        for block, kv_2BTGK in blocks:
            grad = None if block is None else differentiate_block(block, kv_2BTGK[:, :, block.keys])
            # A block's gradient follows the block one step behind, from its first peer on.
            sum_2BSGK = torch.zeros_like(own_2BSGK) if hop is None else hop.wait()
            if block is not None and grad is not None:
                sum_2BSGK[:, :, block.keys] += grad
            hop = transfers.start_hop(sum_2BSGK, self.axis)
        return own_2BSGK if hop is None else own_2BSGK.add_(hop.wait())

    def _rotate_kv(self, kv_2BSGK: Tensor) -> Iterator[tuple[VisibleBlock | None, Tensor]]:
        """Yield every ring rank's keys and values, own ones first, while the next are sent."""
        tokens = kv_2BSGK.shape[2]
        for source, kv_2BTGK in transfers.rotated(kv_2BSGK, self.axis):
            yield visible_block(self.order, self.axis.rank, source, tokens), kv_2BTGK


@dataclass(frozen=True)
class AllGatherExchange:
    """Gather all keys and values at once, in forward and again in backward (Llama 3, arXiv
    2407.21783 §3.3.2).

    It sends the same bytes as :class:`RingExchange` in fewer, larger calls. It holds R times the
    keys and values, and twice that while they are put in order.
    """

    axis: Axis
    order: str

    def forward(self, kv_2BSGK: Tensor, process_block: ProcessBlock) -> None:
        for block, kv_2BTGK in self._gather_kv(kv_2BSGK):
            process_block(block, kv_2BTGK)

    def backward(self, kv_2BSGK: Tensor, differentiate_block: DifferentiateBlock) -> Tensor:
        blocks = self._gather_kv(kv_2BSGK)
        own_block, kv_2BTGK = next(blocks)
        own_2BSGK = differentiate_block(own_block, kv_2BTGK)
        shape = [2, kv_2BSGK.shape[1], self.axis.size * kv_2BSGK.shape[2], *kv_2BSGK.shape[3:]]
        sum_2BTGK = own_2BSGK.new_zeros(shape)
        for block, kv_2BTGK in blocks:
            sum_2BTGK[:, :, block.keys] += differentiate_block(block, kv_2BTGK)
        del kv_2BTGK  # and all keys and values with it
        from_peers = transfers.start_reduce_scatter(
            self._by_ring_rank(sum_2BTGK).flatten(0, 1), self.axis, 0
        )
        return from_peers.wait().add_(own_2BSGK)

    def _gather_kv(self, kv_2BSGK: Tensor) -> Iterator[tuple[VisibleBlock, Tensor]]:
        """Yield this rank's keys and values while all are gathered, then the others it sees."""
        gathered = transfers.start_all_gather(kv_2BSGK, self.axis)
        ring_rank, tokens = self.axis.rank, kv_2BSGK.shape[2]
        own_block = visible_block(self.order, ring_rank, ring_rank, tokens)
        assert own_block is not None, "a ring rank sees its own keys"
        yield own_block, kv_2BSGK
        kv_2BTGK = self._in_order(gathered.wait())
        del gathered
        for block in visible_in_sequence(self.order, self.axis.size, ring_rank, tokens):
            yield block, kv_2BTGK[:, :, block.keys]

    def _in_order(self, kv_R2BSGK: Tensor) -> Tensor:
        """[2, B, R·S, G, K]: the sequence in order, from every ring rank's tokens."""
        if self.order == "contiguous":
            return transfers.unstack(kv_R2BSGK, 2)
        fronts, backs = kv_R2BSGK.chunk(2, dim=3)
        return torch.cat([transfers.unstack(x, 2) for x in (fronts, backs.flip(0))], dim=2)

    def _by_ring_rank(self, kv_2BTGK: Tensor) -> Tensor:
        """[R, 2, B, S, G, K]: the inverse of :meth:`_in_order`."""
        ring = self.axis.size
        if self.order == "contiguous":
            return transfers.stack(kv_2BTGK, ring, 2)
        chunks = transfers.stack(kv_2BTGK, 2 * ring, 2)
        return torch.cat([chunks[:ring], chunks[ring:].flip(0)], dim=3)


class OnlineSoftmax:
    """Attention to the blocks added so far: the softmax over all their keys.

    Attributes:
        out_BSHK: The output, in at least fp32.
        logsumexp_BHS: Its log-sum-exp.
    """

    out_BSHK: Tensor
    logsumexp_BHS: Tensor

    def add(self, queries: slice, out_BtHK: Tensor, logsumexp_BHt: Tensor) -> None:
        """Merge in the attention of some queries to one more block; the first block has all
        queries."""
        if not hasattr(self, "out_BSHK"):
            self.out_BSHK = out_BtHK.to(_wide(out_BtHK))
            self.logsumexp_BHS = logsumexp_BHt
            return
        before = self.out_BSHK[:, queries], self.logsumexp_BHS[:, :, queries]
        merge_(*before, out_BtHK, logsumexp_BHt)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of x, or fp32 if that is narrower."""
    return torch.promote_types(x.dtype, torch.float32)
