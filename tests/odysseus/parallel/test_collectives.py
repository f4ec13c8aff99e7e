"""Each collective against plain torch on the same numbers, and its backward as its transpose.

Values are whole numbers below 1000 kept in fp64, so every sum and product is exact whatever its
order, and equal means equal to the last bit. B batch, s tokens of a rank, D width, n ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from odysseus.parallel import collectives, transfers
from odysseus.parallel.mesh import Axis, world_group
from tests.support.ranks import run_ranks

WORLDS = (2, 4)


def numbers(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Whole numbers in fp64 drawn from a seed, laid out last dimension first."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-999, 1000, shape[::-1], generator=generator)
    return drawn.to(torch.float64).permute(*reversed(range(len(shape))))


def shard_of(x: Tensor, dim: int, rank: int, n: int) -> Tensor:
    return x.chunk(n, dim)[rank]


# The result that one rank should have, from every rank's input.
Expected = Callable[[list[Tensor], int], Tensor]
Case = tuple[Callable[[Tensor, Axis], Tensor], Expected]


def gathered(inputs: list[Tensor], rank: int, dim: int) -> Tensor:
    return torch.cat(inputs, dim)


def scattered(inputs: list[Tensor], rank: int, dim: int) -> Tensor:
    return shard_of(sum(inputs, torch.zeros(())), dim, rank, len(inputs))


def summed(inputs: list[Tensor], rank: int) -> Tensor:
    return sum(inputs, torch.zeros(()))


def exchanged(inputs: list[Tensor], rank: int) -> Tensor:
    return torch.stack([x[rank] for x in inputs])


def sliced(inputs: list[Tensor], rank: int, dim: int) -> Tensor:
    return shard_of(inputs[rank], dim, rank, len(inputs))


def fresh_all_reduce(x: Tensor, axis: Axis) -> Tensor:
    """All-reduce a copy, because the all-reduce works in place."""
    return collectives.start_all_reduce_(x * 1, axis).wait()


def reduce_scatter(x: Tensor, axis: Axis, dim: int = 1) -> Tensor:
    return collectives.start_reduce_scatter(x, axis, dim).wait()


CASES: dict[str, Case] = {"all_reduce_": (fresh_all_reduce, summed)} | {
    f"{collective.__name__} dim {dim}": (partial(collective, dim=dim), partial(expected, dim=dim))
    for collective, expected in (
        (collectives.all_gather, gathered),
        (reduce_scatter, scattered),
        (collectives.take_shard, sliced),
    )
    for dim in (0, 1, 2)
}
CASES["all_to_all"] = (collectives.all_to_all, exchanged)


def apply_every_case() -> dict[str, tuple[bool, float, float]]:
    """Whether forward is as expected, this rank's part of <A x, y>, and of <x, A^T y>, by case."""
    axis = Axis(world_group(), "activation")
    n, results = axis.size, {}
    for name, (collective, expected) in CASES.items():
        shape = (n, 2, 3, 5) if name == "all_to_all" else (2 * n, 3 * n, 4)
        inputs = [numbers(rank, shape) for rank in range(n)]
        x = inputs[axis.rank].clone().requires_grad_()
        out = collective(x, axis)
        right = torch.equal(out, expected(inputs, axis.rank))
        y = numbers(100 + axis.rank, tuple(out.shape))
        out.backward(y)
        assert x.grad is not None
        assert torch.equal(x, inputs[axis.rank]), f"{name} changed its input"
        results[name] = (right, (out * y).sum().item(), (x * x.grad).sum().item())
    return results


@lru_cache
def every_case(world_size: int) -> list[dict[str, tuple[bool, float, float]]]:
    return run_ranks(apply_every_case, world_size)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world_size", WORLDS)
def test_forward_equals_plain_torch(world_size: int, name: str) -> None:
    assert [results[name][0] for results in every_case(world_size)] == [True] * world_size


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world_size", WORLDS)
def test_backward_is_the_transpose(world_size: int, name: str) -> None:
    forward = sum(results[name][1] for results in every_case(world_size))
    backward = sum(results[name][2] for results in every_case(world_size))
    assert forward == backward != 0


def sum_rows() -> dict[str, bool]:
    """Whether each promise of :func:`sum_gradient_rows` holds on this rank."""
    axis = Axis(world_group(), "gradient")
    shape, first = (6, 4), 2
    weight = numbers(axis.rank, shape).requires_grad_()
    outside = [numbers(100 + rank, shape) for rank in range(axis.size)]
    whole = torch.cat([outside[axis.rank][:first], summed(outside, 0)[first:]])
    kept = {}

    def gradient_of(parameter: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
        out = collectives.sum_gradient_rows(parameter, first, axis, dtype)
        kept["forward"] = torch.equal(out, parameter)
        (gradient,) = torch.autograd.grad(out, parameter, grad)
        return gradient

    own = outside[axis.rank].contiguous()
    kept["sum"] = torch.equal(gradient_of(weight, own, torch.float64), whole)
    # The incoming gradient may also belong to another branch.
    kept["incoming"] = torch.equal(own, outside[axis.rank])
    transposed = own.T.contiguous().T
    kept["transposed"] = torch.equal(gradient_of(weight, transposed, torch.float64), whole)
    bias = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    kept["bias"] = torch.equal(gradient_of(bias, own[:, 0], torch.float64), whole[:, 0])
    # bf16 has 8 significant bits: 257 is sent as 256, and rows that are not sent stay 257.
    narrow = gradient_of(weight, torch.full(shape, 257.0, dtype=torch.float64), torch.bfloat16)
    kept["dtype"] = narrow[:, 0].tolist() == [257.0] * first + [256.0 * axis.size] * (6 - first)
    return kept


@lru_cache
def every_row_sum(world_size: int) -> list[dict[str, bool]]:
    return run_ranks(sum_rows, world_size)


@pytest.mark.parametrize("kept", ["forward", "sum", "incoming", "transposed", "bias", "dtype"])
def test_sum_gradient_rows(kept: str) -> None:
    assert [results[kept] for results in every_row_sum(2)] == [True, True]


def change_nothing_alone() -> bool:
    """Whether every collective on an axis of one rank returns the very tensor it is given."""
    alone, _ = dist.new_subgroups_by_enumeration([[0], [1]])
    axis = Axis(alone, "activation")
    x = numbers(dist.get_rank(), (2, 3, 4)).requires_grad_()
    same = [
        collectives.all_gather(x, axis),
        reduce_scatter(x, axis),
        collectives.start_all_reduce_(x, axis).wait(),
        collectives.all_to_all(x, axis),
        collectives.sum_gradient_rows(x, 0, axis, torch.float64),
    ]
    total = x.detach().clone()
    transfers.all_reduce_plain(total, axis)
    sliced = collectives.take_shard(x, axis)
    return all(y is x for y in same) and torch.equal(total, x) and torch.equal(sliced, x)


def test_one_rank_alone_changes_nothing() -> None:
    assert run_ranks(change_nothing_alone, 2) == [True, True]


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_stack_and_unstack_are_inverse(dim: int) -> None:
    n = 3
    x = numbers(0, (n, 2 * n, 4 * n))
    stacked = transfers.stack(x, n, dim)
    assert stacked.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(stacked, x.chunk(n, dim), strict=True))
    assert torch.equal(transfers.unstack(stacked, dim), x)


def test_stack_and_unstack_copy_nothing_for_batch_1() -> None:
    x_BSD = torch.zeros(1, 6, 4)
    stacked = transfers.stack(x_BSD, 3, 1)
    assert stacked.data_ptr() == x_BSD.data_ptr()
    assert transfers.unstack(stacked, 1).data_ptr() == x_BSD.data_ptr()
