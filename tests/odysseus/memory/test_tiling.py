"""An MLP in tiles against the whole one: values, gradients, precision, passes and memory.

fp64 sums in another order differ by about 1e-16 of numbers of order 1: the tolerance is 1e-12.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bench.meters.memory import MemoryMeter
from odysseus.config.architecture import PRESETS
from odysseus.memory.tiling import tile_count, tiled
from odysseus.model.decoder import MLP, Attention, Block, Tricks
from odysseus.model.kernels import TORCH
from odysseus.model.rotary import rotary_table

TOLERANCE = 1e-12
WIDTH, INNER = 8, 24
ARCHITECTURE = replace(
    PRESETS["tiny"],
    hidden_size=WIDTH,
    intermediate_size=INNER,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
)


class Watched(MLP):
    """Notes how many tokens each call had, and whether they will be differentiated."""

    def __init__(self) -> None:
        super().__init__(ARCHITECTURE, TORCH)
        self.calls: list[tuple[int, bool]] = []

    def forward(self, x_BSD: Tensor) -> Tensor:
        self.calls.append((x_BSD.shape[1], torch.is_grad_enabled()))
        return super().forward(x_BSD)


def mlp(dtype: torch.dtype, kind: type[MLP] = MLP) -> MLP:
    torch.manual_seed(0)
    made = Watched() if kind is Watched else MLP(ARCHITECTURE, TORCH)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=WIDTH**-0.5)
    return made.to(dtype)


def gradients(module: nn.Module, x_BSD: Tensor, in_tiles: bool) -> list[Tensor]:
    """The value, the gradient of the input and of each parameter, under one upstream gradient."""
    x_BSD = x_BSD.clone().requires_grad_()
    y_BSD = tiled(module, module.parameters(), x_BSD) if in_tiles else module(x_BSD)
    upstream_BSD = torch.randn(x_BSD.shape, generator=torch.Generator().manual_seed(1))
    of = [x_BSD, *module.parameters()]
    return [y_BSD.detach(), *torch.autograd.grad(y_BSD, of, upstream_BSD.to(y_BSD.dtype))]


def stream(batch: int, tokens: int, dtype: torch.dtype) -> Tensor:
    made = torch.Generator().manual_seed(2)
    return torch.randn(batch, tokens, WIDTH, generator=made, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("tokens", [1, 7, 8, 20, 33])
def test_value_and_gradients(batch: int, tokens: int) -> None:
    """1 tile and many, the last one ragged."""
    module, x_BSD = mlp(torch.float64), stream(batch, tokens, torch.float64)
    expected = gradients(module, x_BSD, in_tiles=False)
    for found, wanted in zip(gradients(module, x_BSD, in_tiles=True), expected, strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < TOLERANCE


def test_parameter_gradients_in_bf16_sum_in_fp32() -> None:
    """256 tiles: a bf16 sum would lose most of what the later ones add."""
    module, x_BSD = mlp(torch.bfloat16), stream(1, 256 * WIDTH, torch.bfloat16)
    exact = mlp(torch.float64)
    exact.load_state_dict(module.state_dict())
    expected = gradients(exact, x_BSD.double(), in_tiles=False)[2:]

    def errors(in_tiles: bool) -> list[float]:
        found = gradients(module, x_BSD, in_tiles)[2:]
        assert {g.dtype for g in found} == {torch.bfloat16}
        return [float((g - e).norm() / e.norm()) for g, e in zip(found, expected, strict=True)]

    for of_tiles, whole in zip(errors(True), errors(False), strict=True):
        assert of_tiles <= 1.5 * whole


@pytest.mark.parametrize(
    ("batch", "tokens", "width", "tiles"),
    [
        (1, 64, 64, 1),
        (1, 65, 64, 2),
        (2, 64, 64, 2),
        (3, 43, 64, 3),  # 129 tokens in all
        (1, 1, 64, 1),
        (512, 2, 4, 2),  # no tile is less than a token of the sequence
        (1, 131072, 4096, 32),
    ],
)
def test_tile_count(batch: int, tokens: int, width: int, tiles: int) -> None:
    assert tile_count(batch, tokens, width) == tiles


TILES = [7, 7, 6]
"""Tiles of 20 tokens at width 8: ceil(20 / 8) = 3 of at most ceil(20 / 3) = 7 tokens."""


@pytest.mark.parametrize("recompute", [False, True])
def test_tiles_run_twice_and_not_in_vain(recompute: bool) -> None:
    """Forward and in backward; recomputing a block stops before its MLP."""
    attention = Attention(ARCHITECTURE, TORCH)
    module = mlp(torch.float32, Watched)
    assert isinstance(module, Watched)
    tricks = Tricks(tile_mlp=True, recompute=recompute)
    block = Block(ARCHITECTURE, attention, module, TORCH, tricks)
    for name, parameter in block.named_parameters():
        nn.init.ones_(parameter) if "norm" in name else nn.init.normal_(parameter, std=0.1)
    x_BSD = stream(1, 20, torch.float32).requires_grad_()
    table = rotary_table(ARCHITECTURE, torch.arange(20)[None], torch.float32)
    y_BSD = block(x_BSD, table)
    assert module.calls == [(t, False) for t in TILES]
    module.calls.clear()
    y_BSD.sum().backward()
    assert module.calls == [(t, True) for t in TILES]


@pytest.mark.parametrize("tokens", [64, 512])
def test_one_tiles_working_set_at_a_time(tokens: int) -> None:
    """The peak is in a tile's backward: gate with up, their product, and the gradients of the
    three, 6·INNER elements a token of 8 tokens, and the tile's output, whatever the length.

    Beside them the output, its gradient and the input's of the whole stream, the sums of the
    weights' gradients, and what this tile adds to that of `down_proj`.
    """
    module, x_BSD = mlp(torch.float32), stream(1, tokens, torch.float32).requires_grad_()
    with MemoryMeter() as meter:
        y_BSD = tiled(module, module.parameters(), x_BSD)
        y_BSD.backward(torch.ones_like(y_BSD))
    whole, tile, sums = 3 * tokens * WIDTH, 8 * (6 * INNER + WIDTH), (3 + 1) * WIDTH * INNER
    assert meter.peak().bytes == 4 * (whole + tile + sums)
