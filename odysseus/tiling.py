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
    """One call: the module, its parameters, and how its input is cut."""

    def __init__(self, module: nn.Module, parameters: list[nn.Parameter], count: int) -> None:
        self.module, self.parameters, self.count = module, parameters, count

    def of(self, *tensors: Tensor) -> Any:
        size = -(-tensors[0].shape[1] // self.count)
        return zip(*(tensor.split(size, dim=1) for tensor in tensors), strict=True)

    def backward(
        self, x_BtD: Tensor, grad_y_BtD: Tensor, grad_x_BtD: Tensor, sums: list[Tensor]
    ) -> None:
        """One tile: fill in the gradient of x, add those of the parameters to their sums."""
        with torch.enable_grad():
            x_BtD = x_BtD.detach().requires_grad_()
            y_BtD = self.module(x_BtD)
        grad, *found = torch.autograd.grad(y_BtD, [x_BtD, *self.parameters], grad_y_BtD)
        grad_x_BtD.copy_(grad)
        for index, gradient in enumerate(found):
            if index < len(sums):
                sums[index].add_(gradient)
            else:  # A bf16 sum of many tiles would lose what each adds.
                wide = torch.float32 if self.count > 1 else gradient.dtype
                sums.append(gradient.to(torch.promote_types(gradient.dtype, wide)))


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
            tiles.backward(x_BtD, grad_y_BtD, grad_x_BtD, sums)
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
