"""Shares of heads that do not divide, and attention with them against one rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from odysseus.config.sizes import divides, shares
from odysseus.model.attention import sdpa
from odysseus.parallel.mesh import Axis, world_group
from odysseus.parallel.ulysses import all_to_all_attend
from tests.support.marks import slow
from tests.support.ranks import run_ranks

HEADS = [(6, 3, 2), (6, 6, 4), (6, 2, 4), (5, 1, 4), (5, 5, 2), (8, 4, 3), (7, 7, 4), (12, 4, 3)]
"""Query heads, kv heads, ranks."""


@pytest.mark.parametrize(("heads", "kv_heads", "ranks"), HEADS)
def test_shares_are_whole_and_even(heads: int, kv_heads: int, ranks: int) -> None:
    found = shares(heads, kv_heads, ranks)
    assert [head for q, _ in found for head in q] == [*range(heads)]
    group = heads // kv_heads
    for q, kv in found:
        assert {head // group for head in q} == {*kv}
    counts = [len(kv) if kv_heads >= ranks else len(q) for q, kv in found]
    assert max(counts) - min(counts) <= 1
    assert len(found[0][0]) == max(len(q) for q, _ in found)


def test_fewer_heads_than_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="3 query heads cannot be shared by 4 ranks of the seque"):
        shares(3, 1, 4)


def errors(cases: list[tuple[int, int]]) -> list[float]:
    rank, n = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found = []
    for heads, kv_heads in cases:
        generator = torch.Generator().manual_seed(0)
        tensors = [
            torch.randn(2, 4 * n, count, 8, generator=generator, dtype=torch.float64)
            for count in (heads, kv_heads, kv_heads, heads)
        ]
        whole = [x.clone().requires_grad_() for x in tensors[:3]]
        expected = sdpa(*whole)
        expected.backward(tensors[3])
        axis = Axis(world_group(), "activation")
        shard = [x.chunk(n, 1)[rank].clone() for x in tensors]
        local = [x.requires_grad_() for x in shard[:3]]
        o = all_to_all_attend(sdpa, axis)(*local)
        o.backward(shard[3])
        pairs: list[tuple[Tensor, Tensor]] = [(o, expected)]
        for mine, of_whole in zip(local, whole, strict=True):
            assert mine.grad is not None
            assert of_whole.grad is not None
            pairs.append((mine.grad, of_whole.grad))
        found.append(max((a - b.chunk(n, 1)[rank]).abs().max().item() for a, b in pairs))
    return found


@pytest.mark.parametrize("world_size", [2, slow(3), slow(4)])
def test_attention_is_that_of_one_rank(world_size: int) -> None:
    cases = [(heads, kv_heads) for heads, kv_heads, _ in HEADS if heads >= world_size]
    assert not all(divides(*case, world_size) for case in cases)
    for of_rank in run_ranks(errors, world_size, cases):
        assert max(of_rank) < 1e-12
