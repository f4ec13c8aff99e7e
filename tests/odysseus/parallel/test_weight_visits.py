"""Weights that visit the ranks with the tokens: values and gradients against whole weights, with
biases, which are zero in a new model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.model.kernels import TORCH
from odysseus.parallel.mesh import make_mesh
from odysseus.parallel.weight_visits import (
    Visits,
    each_owners,
    linear_of_parts,
    start_linear_of,
    swiglu_of_parts,
)
from tests.support.ranks import run_ranks

WIDTH, TOKENS, PART = 6, 5, 4


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def gradients(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.grad for tensor in tensors if tensor.grad is not None]


def largest(found: list[Tensor], expected: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


def visits_of(ranks: int) -> Visits:
    run = RunConfig(method="tsp", world_size=ranks, dtype="fp64", seq_len=2 * ranks)
    return Visits(make_mesh(torch.device("cpu"), run).sequence, torch.float64)


def projection_error(ranks: int) -> float:
    """Return the largest error of a projection and of one that follows, whose columns are cut."""
    visits = visits_of(ranks)

    def mine(x: Tensor, dim: int = 0) -> Tensor:
        return x.chunk(ranks, dim)[visits.axis.rank]

    x, seen = drawn(1, ranks * TOKENS, WIDTH), drawn(1, ranks * TOKENS, WIDTH)
    up, bias, down = drawn(ranks * PART, WIDTH), drawn(ranks * PART), drawn(WIDTH, ranks * PART)
    whole = leaves(x, up, bias, down)
    down_bias = drawn(WIDTH)
    expected = F.linear(F.linear(*whole[:3]), whole[3], down_bias)
    (expected * seen).sum().backward()

    parts = leaves(mine(x, 1), mine(up), mine(bias), mine(down, 1))
    projected = each_owners(lambda owner: start_linear_of(owner, *parts[:3], visits), ranks)
    found = linear_of_parts(torch.cat([*projected], dim=2), parts[3], down_bias, visits).wait()
    (found * mine(seen, 1)).sum().backward()
    of_x, of_up, of_bias, of_down = gradients(whole)
    wanted = [mine(of_x, 1), mine(of_up), mine(of_bias), mine(of_down, 1)]
    return largest([found, *gradients(parts)], [mine(expected, 1), *wanted])


def mlp_error(ranks: int) -> float:
    """Return the largest error of an MLP whose parts go around the ranks."""
    visits = visits_of(ranks)

    def mine(x: Tensor, dim: int = 0) -> Tensor:
        return x.chunk(ranks, dim)[visits.axis.rank]

    def packed(one: Tensor, other: Tensor) -> Tensor:
        return torch.cat([mine(one), mine(other)])

    x, seen = drawn(1, ranks * TOKENS, WIDTH), drawn(1, ranks * TOKENS, WIDTH)
    gate, up = drawn(ranks * PART, WIDTH), drawn(ranks * PART, WIDTH)
    gate_bias, up_bias, down = drawn(ranks * PART), drawn(ranks * PART), drawn(WIDTH, ranks * PART)
    whole = leaves(x, gate, gate_bias, up, up_bias, down)
    gated = F.silu(F.linear(*whole[:3])) * F.linear(whole[0], *whole[3:5])
    expected = F.linear(gated, whole[5])
    (expected * seen).sum().backward()

    parts = leaves(mine(x, 1), packed(gate, up), packed(gate_bias, up_bias), mine(down, 1))
    found = swiglu_of_parts(*parts, TORCH.swiglu, visits)
    (found * mine(seen, 1)).sum().backward()
    of_x, of_gate, of_gate_bias, of_up, of_up_bias, of_down = gradients(whole)
    wanted = [mine(of_x, 1), packed(of_gate, of_up), packed(of_gate_bias, of_up_bias)]
    return largest([found, *gradients(parts)], [mine(expected, 1), *wanted, mine(of_down, 1)])


@pytest.mark.parametrize("error", [projection_error, mlp_error])
@pytest.mark.parametrize("ranks", [2, 3])
def test_as_with_whole_weights(error: Callable[[int], float], ranks: int) -> None:
    assert max(run_ranks(error, ranks, ranks)) < 1e-12
