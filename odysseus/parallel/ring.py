"""Ring attention: causal attention over a sequence that is split over the places of a ring.

Keys and values travel, queries stay (Liu et al., arXiv 2310.01889). Each place merges what its
queries find in one block after another by their log-sum-exp (Dao et al., arXiv 2205.14135 §3.1),
in at least fp32; gradients of keys and values travel in that too, or the error would grow with the
ring. B batch, S tokens of this place, T of some keys, H query heads, G kv heads, K elements of a
head; 2 is keys and values.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.model.attention import CausalAttention, differentiable
from odysseus.model.block_attention import BlockAttention
from odysseus.model.documents import Documents, Span
from odysseus.model.kernels import Kernels, check_blocks
from odysseus.parallel import transfers
from odysseus.parallel.mesh import Axis
from odysseus.parallel.ring_order import Look, look_at_place, look_at_whole, positions_of
from odysseus.parallel.yunchang import yunchang_ring

Visit = Callable[[Look, Tensor], None]
"""visit(look, kv_2BTGK): let this place's tokens look at these keys and values."""
Differentiate = Callable[[Look, Tensor], Tensor]
"""differentiate(look, kv_2BTGK) -> the gradient of these, in at least fp32."""


class Exchange(Protocol):
    """How the keys and values of all places and this place's queries come together."""

    @property
    def axis(self) -> Axis: ...
    @property
    def order(self) -> str: ...

    def forward(self, kv_2BSGK: Tensor, visit: Visit) -> None:
        """Visit this place's own keys and values first, then all others that its tokens see."""
        ...

    def backward(self, kv_2BSGK: Tensor, differentiate: Differentiate) -> Tensor:
        """Visit them again; the gradient of this place's own, from all places together."""
        ...


_FLASH = ("auto", "flash_attention_2")


def check(run: RunConfig, device: torch.device) -> None:
    """Raise ValueError if a run's ring has no kernel on a device.

    Sizes are :meth:`RunConfig.check`'s to check.
    """
    if run.ring_parallel_size == 1:
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
    check_blocks(run, device, "ring attention")


def choose_ring(run: RunConfig, axis: Axis, kernels: Kernels) -> Kernels:
    """These kernels, but for attention: a run's over the ring axis of its mesh."""
    if run.ring_backend == "yunchang":
        return replace(kernels, attend=yunchang_ring(axis, run.ring_order), whole=None)
    assert kernels.blocks is not None, "as check has made sure"
    exchange = {"native": PassOn, "allgather": AllGather}[run.ring_backend]
    whole = around(exchange(axis, run.ring_order), kernels.blocks)
    return replace(kernels, attend=differentiable(whole), whole=whole)


def around(exchange: Exchange, blocks: BlockAttention) -> CausalAttention:
    """Causal attention over the tokens of all places, of one place's queries, by a block kernel."""

    def spans(look: Look, q: Tensor, documents: Documents | None) -> Iterable[Span] | None:
        ring = exchange.axis.size, exchange.axis.rank
        if documents is None:
            return None
        seq_len = q.shape[1] * ring[0]
        return documents.spans(*positions_of(look, exchange.order, seq_len, *ring))

    def forward(
        q: Tensor, k: Tensor, v: Tensor, documents: Documents | None
    ) -> tuple[Tensor, Tensor]:
        merged = _Merged()

        def visit(look: Look, kv_2BTGK: Tensor) -> None:
            k_BTGK, v_BTGK = kv_2BTGK
            found = blocks.forward_within(
                spans(look, q, documents), q[:, look.queries], k_BTGK, v_BTGK, look.causal
            )
            merged.add(look.queries, *found)

        exchange.forward(torch.stack((k, v)), visit)
        return merged.out_BSHK.to(q.dtype), merged.logsumexp_BHS

    def backward(
        grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse_BHS: Tensor,
        documents: Documents | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        grad_q = torch.zeros_like(q, dtype=_wide(q))

        def differentiate(look: Look, kv_2BTGK: Tensor) -> Tensor:
            queries, of = look.queries, (slice(None), look.queries)
            # With the log-sum-exp of all keys, a block's backward is its part of the whole one.
            of_queries, lse_BHs = (grad_o[of], q[of]), lse_BHS[:, :, queries]
            k_BTGK, v_BTGK = kv_2BTGK
            grad, *grad_kv = blocks.backward_within(
                spans(look, q, documents),
                *(*of_queries, k_BTGK, v_BTGK, o[of], lse_BHs, look.causal),
            )
            grad_q[of].add_(grad)
            return torch.stack(grad_kv).to(grad_q.dtype)

        grad_k, grad_v = exchange.backward(torch.stack((k, v)), differentiate).to(k.dtype)
        return grad_q.to(q.dtype), grad_k, grad_v

    return CausalAttention(forward, backward)


@dataclass(frozen=True)
class PassOn:
    """Each place passes on what it has to the next one while it computes with it: R-1 hops.

    Only the last hop of the gradients has nothing to hide behind.

    Bytes a place sends: (R-1)·|kv| forward, as much backward, and (R-1)·|kv| in fp32.
    """

    axis: Axis
    order: str

    def forward(self, kv_2BSGK: Tensor, visit: Visit) -> None:
        for look, block in self._come_round(kv_2BSGK):
            if look is not None:
                visit(look, block[:, :, look.keys])

    def backward(self, kv_2BSGK: Tensor, differentiate: Differentiate) -> Tensor:
        blocks = self._come_round(kv_2BSGK)
        home, block = next(blocks)
        assert home is not None, "own keys are always seen"
        own_2BSGK = differentiate(home, block)
        hop = None
        for look, block in blocks:
            found = None if look is None else differentiate(look, block[:, :, look.keys])
            # A block's gradient follows it round, one step behind, from the first other place on.
            sum_2BSGK = torch.zeros_like(own_2BSGK) if hop is None else hop.wait()
            if look is not None and found is not None:
                sum_2BSGK[:, :, look.keys] += found
            hop = transfers.start_hop(sum_2BSGK, self.axis)
        return own_2BSGK if hop is None else own_2BSGK.add_(hop.wait())

    def _come_round(self, kv_2BSGK: Tensor) -> Iterator[tuple[Look | None, Tensor]]:
        """Every place's keys and values, own ones first, the next on their way meanwhile."""
        place, ring = self.axis.rank, self.axis.size
        for step in range(ring):
            hop = transfers.start_hop(kv_2BSGK, self.axis) if step < ring - 1 else None
            source = (place - step) % ring
            yield look_at_place(self.order, place, source, kv_2BSGK.shape[2]), kv_2BSGK
            if hop is not None:
                kv_2BSGK = hop.wait()
                del hop  # and with it what was sent


@dataclass(frozen=True)
class AllGather:
    """Gather all keys and values at once, forward and again backward (Llama 3, arXiv 2407.21783
    §3.3.2): the same bytes, fewer and larger calls, R times the keys and values, twice that while
    they are put in order.
    """

    axis: Axis
    order: str

    def forward(self, kv_2BSGK: Tensor, visit: Visit) -> None:
        for look, block in self._come_together(kv_2BSGK):
            visit(look, block)

    def backward(self, kv_2BSGK: Tensor, differentiate: Differentiate) -> Tensor:
        blocks = self._come_together(kv_2BSGK)
        home, block = next(blocks)
        own_2BSGK = differentiate(home, block)
        shape = [2, kv_2BSGK.shape[1], self.axis.size * kv_2BSGK.shape[2], *kv_2BSGK.shape[3:]]
        sum_2BTGK = own_2BSGK.new_zeros(shape)
        for look, block in blocks:
            sum_2BTGK[:, :, look.keys] += differentiate(look, block)
        del block  # and with it all keys and values
        others = transfers.start_reduce_scatter(
            self._by_place(sum_2BTGK).flatten(0, 1), self.axis, 0
        )
        return others.wait().add_(own_2BSGK)

    def _come_together(self, kv_2BSGK: Tensor) -> Iterator[tuple[Look, Tensor]]:
        """This place's keys and values while all are on their way, then what else is seen."""
        gathered = transfers.start_all_gather(kv_2BSGK, self.axis)
        place, tokens = self.axis.rank, kv_2BSGK.shape[2]
        home = look_at_place(self.order, place, place, tokens)
        assert home is not None, "own keys are always seen"
        yield home, kv_2BSGK
        kv_2BTGK = self._in_order(gathered.wait())
        del gathered
        for look in look_at_whole(self.order, self.axis.size, place, tokens):
            yield look, kv_2BTGK[:, :, look.keys]

    def _in_order(self, places_R2BSGK: Tensor) -> Tensor:
        """The sequence in order from what every place has of it."""
        if self.order == "contiguous":
            return transfers.unstack(places_R2BSGK, 2)
        fronts, backs = places_R2BSGK.chunk(2, dim=3)
        return torch.cat([transfers.unstack(x, 2) for x in (fronts, backs.flip(0))], dim=2)

    def _by_place(self, whole_2BTGK: Tensor) -> Tensor:
        """The inverse of :meth:`_in_order`."""
        ring = self.axis.size
        if self.order == "contiguous":
            return transfers.stack(whole_2BTGK, ring, 2)
        chunks = transfers.stack(whole_2BTGK, 2 * ring, 2)
        return torch.cat([chunks[:ring], chunks[ring:].flip(0)], dim=3)


class _Merged:
    """What queries have found in the blocks so far: the softmax over all keys seen."""

    out_BSHK: Tensor
    logsumexp_BHS: Tensor

    def add(self, queries: slice, out_BtHK: Tensor, logsumexp_BHt: Tensor) -> None:
        """Merge in what some queries found in one more block; all queries come first."""
        if not hasattr(self, "out_BSHK"):
            self.out_BSHK = out_BtHK.to(_wide(out_BtHK))
            self.logsumexp_BHS = logsumexp_BHt
            return
        before = self.logsumexp_BHS[:, :, queries]
        share_BHt = torch.sigmoid(logsumexp_BHt - before)
        self.out_BSHK[:, queries].lerp_(
            out_BtHK.to(self.out_BSHK.dtype), share_BHt.transpose(1, 2).unsqueeze(-1)
        )
        before.copy_(torch.logaddexp(before, logsumexp_BHt))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
