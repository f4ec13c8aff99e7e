"""A function of tokens computed tile by tile along the sequence, forward and again in backward.

An MLP's inner tensors are several times wider than the stream and so, for long sequences, the
largest of a block. In tiles, only those of one tile exist at once (ALST, arXiv 2506.13996 §3.1.1).
B batch, S tokens, t tokens of one tile, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def tile_count(batch: int, tokens: int, width: int) -> int:
    """Return ceil(B·S / D) tiles of about `width` tokens, as in DeepSpeed's TiledMLP; at most S."""
    return min(tokens, -(-batch * tokens // width))


def tiled(
    function: Callable[..., Tensor], parameters: Iterable[nn.Parameter], *inputs: Tensor
) -> Tensor:
    """Compute function(*inputs), one tile of tokens at a time.

    Shapes are the same on every rank, so tiles are too, and the function may communicate. ZeRO
    gathers the parameters and reduces their gradients once, outside the tiles. Tiles' gradients of
    the parameters are summed in at least fp32.

    Args:
        function: Maps tiles of tokens to a tensor with the shape of its first input.
        parameters: The parameters that the function uses.
        inputs: [B, S, ...] each.

    Returns:
        A tensor with the shape and dtype of the first input.
    """
    trained = [p for p in parameters if p.requires_grad]
    tiles = Tiles(function, trained, tile_count(*inputs[0].shape))
    saved = _SaveInputs.apply(tiles, len(inputs), *inputs, *trained)
    return _RunTiles.apply(saved, tiles, *(x.detach() for x in inputs[1:]))


def cut(count: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield every tile of all tensors, [B, t, ...] of [B, S, ...]; the last may be shorter."""
    size = -(-tensors[0].shape[1] // count)
    return zip(*(tensor.split(size, dim=1) for tensor in tensors), strict=True)


class Tiles:
    """A function of tokens, the parameters it uses, and the number of tiles of its inputs."""

    def __init__(
        self, function: Callable[..., Any], parameters: list[nn.Parameter], count: int
    ) -> None:
        self.function, self.parameters, self.count = function, parameters, count

    def split(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield every tile of all tensors."""
        return cut(self.count, *tensors)

    def backward(
        self,
        inputs: Sequence[Tensor],
        grad_outputs: Sequence[Tensor],
        grad_inputs: Sequence[Tensor],
        sums: list[Tensor],
    ) -> None:
        """Run one tile's backward, its forward again first.

        Args:
            inputs: One tile of each input.
            grad_outputs: Gradients of the function's outputs.
            grad_inputs: Filled with the gradients of the first inputs, as many as are given.
            sums: Sums of the parameters' gradients over tiles, to which this tile's are added.
        """
        count = len(grad_inputs)
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in inputs[:count]]
            outputs = self.function(*leaves, *inputs[count:])
        gradients = torch.autograd.grad(outputs, [*leaves, *self.parameters], grad_outputs)
        del outputs
        for grad_input, gradient in zip(grad_inputs, gradients, strict=False):
            grad_input.copy_(gradient)
        for index, gradient in enumerate(gradients[count:]):
            if index < len(sums):
                sums[index].add_(gradient)
            else:  # A sum of many tiles in bf16 would lose small addends.
                wide = torch.float32 if self.count > 1 else gradient.dtype
                sums.append(gradient.to(torch.promote_types(gradient.dtype, wide)))

    def rounded_gradients(self, sums: list[Tensor]) -> Iterator[Tensor]:
        """Yield the sums, rounded to the dtypes of the parameters."""
        return (s.to(p.dtype) for s, p in zip(sums, self.parameters, strict=True))


class _SaveInputs(torch.autograd.Function):
    """Saves the inputs in forward, and runs the whole backward.

    It is separate from :class:`_RunTiles` for activation checkpointing, which stops recomputing as
    soon as the last saved tensor exists: then the tiles do not run a second time for nothing.
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


class _RunTiles(torch.autograd.Function):
    """Runs the tiles in forward. Its backward passes the gradient of y on to :class:`_SaveInputs`,
    which computes all others."""

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
