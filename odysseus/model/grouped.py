"""Rows of tokens in the order of their experts, and linear layers that each expert applies to its
own rows.

T tokens, K experts of a token, R = T·K rows, E experts, D width in, W width out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ALIGNMENT = 16
"""Bytes that the rows of a grouped matmul's matrices must be a multiple of."""


@dataclass(frozen=True)
class Rows:
    """The order of rows by expert.

    Attributes:
        order_R: Index of each row in [T, K], int64.
        place_R: The inverse: the row of each place of [T, K], int64.
        ends_E: Row after the last one of each expert, int32.
        per_token: K.
    """

    order_R: Tensor
    place_R: Tensor
    ends_E: Tensor
    per_token: int

    @staticmethod
    def by_expert(experts_TK: Tensor, count: int) -> Rows:
        """Sort the tokens' places by expert; places of one expert keep their order.

        Args:
            experts_TK: Numbers of each token's experts, int64.
            count: Number of experts.
        """
        sorted_R, order_R = experts_TK.flatten().sort(stable=True)
        numbers_R = torch.arange(order_R.numel(), device=order_R.device)
        place_R = torch.empty_like(order_R).scatter_(0, order_R, numbers_R)
        numbers_E = torch.arange(count, device=order_R.device)
        ends_E = torch.searchsorted(sorted_R, numbers_E, right=True, out_int32=True)
        return Rows(order_R, place_R, ends_E, experts_TK.shape[1])

    @cached_property
    def counts(self) -> list[int]:
        """Rows of each expert, for which the host waits; equally many of tensors without values."""
        rows, count = len(self.order_R), len(self.ends_E)
        if self.ends_E.is_meta:
            ends = [rows * (expert + 1) // count for expert in range(count)]
        else:
            ends = self.ends_E.tolist()
        return [end - start for start, end in pairwise([0, *ends])]

    def spread(self, x_TD: Tensor) -> Tensor:
        """Copy each token to the rows of its experts, [R, D]."""
        return _Spread.apply(x_TD, self)

    def in_order(self, x_TK: Tensor) -> Tensor:
        """Put one number of each place in the order of the rows, [R, 1]."""
        return x_TK.flatten().index_select(0, self.order_R).unsqueeze(1)

    def collect(self, x_RD: Tensor) -> Tensor:
        """Add the rows of each token, [T, D]; the transpose of :meth:`spread`."""
        return _Collect.apply(x_RD, self)


class GroupedLinear(nn.Module):
    """A linear layer of each expert, uninitialised and without biases.

    `weight` [E·W, D] has the first expert's rows, then the second's, and so on, so that it can be
    sharded by rows as any other weight.
    """

    def __init__(self, experts: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.experts = experts
        self.weight = nn.Parameter(torch.empty(experts * width_out, width_in))

    def forward(self, x_RD: Tensor, rows: Rows) -> Tensor:
        """[R, W]: each row times the weight of its expert."""
        return grouped_linear(x_RD, self.weight.unflatten(0, (self.experts, -1)), rows)


def grouped_linear(x_RD: Tensor, weight_EWD: Tensor, rows: Rows) -> Tensor:
    """Multiply the rows of each expert by its weight, [R, W].

    In bf16 it is one grouped matmul, for which a GPU does not tell the host how many rows an expert
    has. In other dtypes, without rows, and for widths that it does not take, there is one matmul
    per expert.
    """
    widths = (width * weight_EWD.element_size() for width in weight_EWD.shape[1:])
    aligned = not any(width % _ALIGNMENT for width in widths)
    if x_RD.dtype == torch.bfloat16 and aligned and len(x_RD):
        return F.grouped_mm(x_RD, weight_EWD.transpose(1, 2), offs=rows.ends_E)
    return _EachExpert.apply(x_RD, weight_EWD, rows.counts)


class _EachExpert(torch.autograd.Function):
    """One matmul per expert, each into its part of the result."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, weight_EWD: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x_RD, weight_EWD)
        ctx.counts = counts
        y_RW = x_RD.new_empty(len(x_RD), weight_EWD.shape[1])
        for y, x, weight in zip(y_RW.split(counts), x_RD.split(counts), weight_EWD, strict=True):
            torch.mm(x, weight.T, out=y)
        return y_RW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad_RW,), (x_RD, weight_EWD) = grads, ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x_RD), torch.empty_like(weight_EWD)
        parts = (tensor.split(ctx.counts) for tensor in (grad_RW, x_RD, grad_x))
        for grad, x, to_x, weight, to_weight in zip(*parts, weight_EWD, grad_weight, strict=True):
            torch.mm(grad, weight, out=to_x)
            torch.mm(grad.T, x, out=to_weight)
        return grad_x, grad_weight, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return _copied(x_TD, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad_RD,), rows = grads, ctx.rows
        return _summed(grad_RD, rows), None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return _summed(x_RD, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad_TD,), rows = grads, ctx.rows
        return _copied(grad_TD, rows), None


def _copied(x_TD: Tensor, rows: Rows) -> Tensor:
    return x_TD.index_select(0, rows.order_R // rows.per_token)


def _summed(x_RD: Tensor, rows: Rows) -> Tensor:
    return x_RD.index_select(0, rows.place_R).unflatten(0, (-1, rows.per_token)).sum(1)
