"""A function of tokens computed tile by tile along the sequence, forward and again in backward.

B batch, S tokens, D width. Long sequences make an MLP's inner tensors, several times wider than
the stream, the largest of a block; in tiles only one tile's exist at once (ALST, arXiv 2506.13996
§3.1.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def tile_count(batch: int, tokens: int, width: int) -> int:
    """Tiles of about `width` tokens, as DeepSpeed's TiledMLP has them: ceil(B·S / D)."""
    return min(tokens, -(-batch * tokens // width))


def tiled(
    function: Callable[..., Tensor], parameters: Iterable[nn.Parameter], *inputs: Tensor
) -> Tensor:
    """function(*inputs), one tile of tokens at a time.

    Every rank has the same shapes, so every rank has the same tiles, and a function that talks to
    others may be tiled too. The parameters are gathered and their gradients reduced by whoever
    shards them, once: tiles see neither. Their sum is kept in at least fp32.

    Args:
        function: Of tokens; what it returns has the shape of its first input.
        parameters: What it computes with.
        inputs: [B, S, ...] each.
    """
    trained = [p for p in parameters if p.requires_grad]
    tiles = Tiles(function, trained, tile_count(*inputs[0].shape))
    kept = _Keep.apply(tiles, len(inputs), *inputs, *trained)
    return _Compute.apply(kept, tiles, *(x.detach() for x in inputs[1:]))


def cut(count: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Every tile of all tensors, [B, t, ...] of [B, S, ...] each, the last one ragged."""
    size = -(-tensors[0].shape[1] // count)
    return zip(*(tensor.split(size, dim=1) for tensor in tensors), strict=True)


class Tiles:
    """A function of tokens, its parameters, and into how many tiles its inputs are cut."""

    def __init__(
        self, function: Callable[..., Any], parameters: list[nn.Parameter], count: int
    ) -> None:
        self.function, self.parameters, self.count = function, parameters, count

    def split(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Every tile of all tensors."""
        return cut(self.count, *tensors)

    def backward(
        self,
        inputs: Sequence[Tensor],
        grad_outputs: Sequence[Tensor],
        grad_inputs: Sequence[Tensor],
        sums: list[Tensor],
    ) -> None:
        """One tile: fill in the gradients of as many inputs as there are, the first ones; add those
        of the parameters to their sums."""
        count = len(grad_inputs)
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in inputs[:count]]
            outputs = self.function(*leaves, *inputs[count:])
        found = torch.autograd.grad(outputs, [*leaves, *self.parameters], grad_outputs)
        del outputs
        for whole, gradient in zip(grad_inputs, found, strict=False):
            whole.copy_(gradient)
        for index, gradient in enumerate(found[count:]):
            if index < len(sums):
                sums[index].add_(gradient)
            else:  # A bf16 sum of many tiles would lose what each adds.
                wide = torch.float32 if self.count > 1 else gradient.dtype
                sums.append(gradient.to(torch.promote_types(gradient.dtype, wide)))

    def rounded_gradients(self, sums: list[Tensor]) -> Iterator[Tensor]:
        """The parameters' gradients, in their dtype."""
        return (s.to(p.dtype) for s, p in zip(sums, self.parameters, strict=True))


class _Keep(torch.autograd.Function):
    """Keeps the inputs, and has the whole backward.

    It is apart from the forward so that under activation checkpointing, which stops recomputing
    once the last tensor that backward needs is there, the tiles do not run in vain.
    """

    @staticmethod
    def forward(ctx: Any, tiles: Tiles, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[:count])
        ctx.tiles = tiles
        return tensors[0].view_as(tensors[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, tiles = ctx.saved_tensors, ctx.tiles
        (grad_y,) = grads
        grad_inputs = [torch.empty_like(x) for x in inputs]
        sums: list[Tensor] = []
        for grad_y_t, *rest in tiles.split(grad_y, *inputs, *grad_inputs):
            tiles.backward(rest[: len(inputs)], [grad_y_t], rest[len(inputs) :], sums)
        return None, None, *grad_inputs, *tiles.rounded_gradients(sums)


class _Compute(torch.autograd.Function):
    """Runs the tiles. What it hands back is the gradient of y: :class:`_Keep` takes it as such."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tiles: Tiles, *others: Tensor) -> Tensor:
        ctx.inputs = 2 + len(others)
        y = torch.empty_like(x)
        for y_t, *inputs in tiles.split(y, x, *others):
            y_t.copy_(tiles.function(*inputs))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], *[None] * (ctx.inputs - 1)
