"""A function of tokens computed tile by tile along the sequence, forward and again in backward.

B batch, S tokens, D width. Long sequences make an MLP's inner tensors, several times wider than
the stream, the largest of a block; in tiles only one tile's exist at once (ALST, arXiv 2506.13996
§3.1.1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def tile_count(batch: int, tokens: int, width: int) -> int:
    """Tiles of about `width` tokens, as DeepSpeed's TiledMLP has them: ceil(B·S / D)."""
    return min(tokens, -(-batch * tokens // width))


def tiled(module: nn.Module, x_BSD: Tensor) -> Tensor:
    """module(x), one tile of tokens at a time; y has the shape of x.

    Every rank has the same shapes, so every rank has the same tiles, and a module that talks to
    others may be tiled too. The module's weights are gathered and their gradients reduced by
    whoever shards it, once: tiles see neither. Their sum is kept in at least fp32.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    tiles = _Tiles(module, parameters, tile_count(*x_BSD.shape))
    kept_BSD = _Keep.apply(x_BSD, tiles, *parameters)
    return _Compute.apply(kept_BSD, tiles)


class _Tiles:
    """The module of one call, its parameters, and how its input is cut."""

    def __init__(self, module: nn.Module, parameters: list[nn.Parameter], count: int) -> None:
        self.module, self.parameters, self.count = module, parameters, count

    def of(self, *tensors: Tensor) -> Any:
        size = -(-tensors[0].shape[1] // self.count)
        return zip(*(tensor.split(size, dim=1) for tensor in tensors), strict=True)


class _Keep(torch.autograd.Function):
    """Keeps the input, and has the whole backward.

    It is apart from the forward so that under activation checkpointing, which stops recomputing
    once the last tensor that backward needs is there, the tiles do not run in vain.
    """

    @staticmethod
    def forward(ctx: Any, x_BSD: Tensor, tiles: _Tiles, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x_BSD)
        ctx.tiles = tiles
        return x_BSD.view_as(x_BSD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x_BSD,), tiles = ctx.saved_tensors, ctx.tiles
        (grad_y_BSD,) = grads
        grad_x_BSD = torch.empty_like(x_BSD)
        sums: list[Tensor] = []
        for x_BtD, grad_y_BtD, grad_x_BtD in tiles.of(x_BSD, grad_y_BSD, grad_x_BSD):
            with torch.enable_grad():
                x_BtD = x_BtD.detach().requires_grad_()
                y_BtD = tiles.module(x_BtD)
            found = torch.autograd.grad(y_BtD, [x_BtD, *tiles.parameters], grad_y_BtD)
            del y_BtD
            grad_x_BtD.copy_(found[0])
            sums = _add(sums, found[1:], tiles.count)
        parameter_grads = (s.to(p.dtype) for s, p in zip(sums, tiles.parameters, strict=True))
        return grad_x_BSD, None, *parameter_grads


class _Compute(torch.autograd.Function):
    """Runs the tiles. What it hands back is the gradient of y: :class:`_Keep` takes it as such."""

    @staticmethod
    def forward(ctx: Any, x_BSD: Tensor, tiles: _Tiles) -> Tensor:
        y_BSD = torch.empty_like(x_BSD)
        for x_BtD, y_BtD in tiles.of(x_BSD, y_BSD):
            y_BtD.copy_(tiles.module(x_BtD))
        return y_BSD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _add(sums: list[Tensor], found: tuple[Tensor, ...], count: int) -> list[Tensor]:
    """Add a tile's gradients; a bf16 sum of many tiles would lose what each adds."""
    if count == 1:
        return list(found)
    if not sums:
        return [g.to(torch.promote_types(g.dtype, torch.float32)) for g in found]
    for total, gradient in zip(sums, found, strict=True):
        total.add_(gradient)
    return sums
