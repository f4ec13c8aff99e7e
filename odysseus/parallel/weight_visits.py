"""Linear layers and an MLP whose tokens and weights are both cut over one axis: tokens stay, and
every part of a weight visits each rank (TSP, Shyam et al., arXiv 2604.26294).

In attention the owners broadcast their parts in turn. In the MLP the parts go around a ring. What
visits is not kept: backward brings it again and sums the gradient of each part at its owner. B
batch, s tokens of this rank, D width, e a part of an inner width, P elements of a part, n ranks of
the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odysseus.model.pending import Pending
from odysseus.parallel import transfers
from odysseus.parallel.mesh import Axis


@dataclass(frozen=True)
class Visits:
    """The axis on which parts of weights visit ranks.

    Attributes:
        axis: The ranks that own the parts.
        dtype: Dtype in which the gradients of a part are sent.
    """

    axis: Axis
    dtype: torch.dtype

    @cached_property
    def weights(self) -> Axis:
        """The axis for weights, which the traffic meter counts as parameters."""
        return replace(self.axis, purpose="parameter")

    @cached_property
    def gradients(self) -> Axis:
        """The axis for gradients of weights."""
        return replace(self.axis, purpose="gradient")


def start_linear_of(owner: int, x_BsD: Tensor, part_eD: Tensor, visits: Visits) -> Pending:
    """Forward: the owner broadcasts its part of a weight; matmul, [B, s, D] to [B, s, e].
    Backward: broadcasts it again beside the matmul of its gradient; the sum of that gradient at
    the owner runs beside the matmul of the input's gradient.
    Bytes: (n-1)/n of the part, in forward and in backward, and of its gradient.
    Meaning: every rank applies the owner's part of a weight to its own tokens.

    Args:
        part_eD: This rank's own part of the weight; of a width of D + 1, the last column is a bias.
    """
    started = transfers.start_broadcast(part_eD.detach(), owner, visits.weights)
    return Pending(lambda: _LinearOf.apply(x_BsD, part_eD, owner, started, visits))


def each_owners(start: Callable[[int], Pending], owners: int) -> Iterator[Tensor]:
    """Yield the result of each owner in turn, while the broadcast of the next one runs."""
    started = start(0)
    for owner in range(owners):
        following = start(owner + 1) if owner + 1 < owners else None
        yield started.wait()
        if following is not None:
            started = following


def linear_of_parts(
    x_BsC: Tensor, part_De: Tensor, bias_D: Tensor | None, visits: Visits
) -> Pending:
    """Row-parallel linear of whole rows of x, [B, s, n·e] to [B, s, D]: the sum over all owners'
    parts."""

    def summed() -> Tensor:
        xs_BsC = x_BsC.chunk(visits.axis.size, dim=-1)
        products = each_owners(
            lambda owner: start_linear_of(owner, xs_BsC[owner], part_De, visits), visits.axis.size
        )
        y_BsD = next(products)
        for product_BsD in products:
            y_BsD = y_BsD + product_BsD
        return y_BsD if bias_D is None else y_BsD + bias_D

    return Pending(summed)


def swiglu_of_parts(
    x_BsD: Tensor,
    gate_up_eD: Tensor,
    gate_up_bias_e: Tensor | None,
    down_Dh: Tensor,
    swiglu: Callable[[Tensor], Tensor],
    visits: Visits,
) -> Tensor:
    """Forward: an MLP without the bias of its output, whose parts go around the ranks as a ring;
    [B, s, D] to [B, s, D].
    Backward: they go around again, and the sum of each part's gradients follows it home.
    Bytes: n-1 parts, in forward and in backward, and n-1 gradients of a part.
    Meaning: every rank applies all parts of the MLP to its own tokens."""
    tensors = [t for t in (gate_up_eD, down_Dh, gate_up_bias_e) if t is not None]
    packed_P = torch.cat([t.flatten() for t in tensors])
    shapes = [t.shape for t in tensors]
    return _SwigluOfParts.apply(x_BsD, packed_P, shapes, swiglu, visits)


class _LinearOf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BsD: Tensor, part_eD: Tensor, owner: int, started: Pending, visits: Visits
    ) -> Tensor:
        ctx.save_for_backward(x_BsD, part_eD)
        ctx.owner, ctx.visits = owner, visits
        return F.linear(x_BsD, *_weight_and_bias(started.wait(), x_BsD.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (grad_Bse,) = grads
        x_BsD, part_eD = ctx.saved_tensors
        owner, visits = ctx.owner, ctx.visits
        started = transfers.start_broadcast(part_eD, owner, visits.weights)
        grad_eD = _gradient(grad_Bse, x_BsD, part_eD.shape[-1] > x_BsD.shape[-1])
        reduced = transfers.start_reduce_(grad_eD.to(visits.dtype), owner, visits.gradients)
        del grad_eD
        grad_x_BsD = grad_Bse @ _weight_and_bias(started.wait(), x_BsD.shape[-1])[0]
        sum_eD = reduced.wait()
        own = sum_eD.to(part_eD.dtype) if visits.axis.rank == owner else None
        return grad_x_BsD, own, None, None, None


class _SwigluOfParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BsD: Tensor,
        packed_P: Tensor,
        shapes: list[torch.Size],
        swiglu: Callable[[Tensor], Tensor],
        visits: Visits,
    ) -> Tensor:
        y_BsD, kept_Bse = None, []
        for _, part_P in transfers.rotated(packed_P, visits.weights):
            gate_up_eD, down_Dh, *bias_e = _unpacked(part_P, shapes)
            kept_Bse.append(F.linear(x_BsD, gate_up_eD, *bias_e))
            product_BsD = F.linear(swiglu(kept_Bse[-1]), down_Dh)
            y_BsD = product_BsD if y_BsD is None else y_BsD.add_(product_BsD)
        ctx.save_for_backward(x_BsD, packed_P, *kept_Bse)
        ctx.shapes, ctx.swiglu, ctx.visits = shapes, swiglu, visits
        assert y_BsD is not None
        return y_BsD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        (grad_BsD,) = grads
        x_BsD, packed_P, *kept_Bse = ctx.saved_tensors
        grad_x_BsD: Tensor | None = None

        def gradients() -> Iterator[Tensor]:
            nonlocal grad_x_BsD
            parts = transfers.rotated(packed_P, ctx.visits.weights)
            for (_, part_P), gate_up_Bse in zip(parts, kept_Bse, strict=True):
                gate_up_eD, down_Dh, *bias_e = _unpacked(part_P, ctx.shapes)
                inner_Bse = gate_up_Bse.detach().requires_grad_()
                with torch.enable_grad():
                    inner_Bsh = ctx.swiglu(inner_Bse)
                (grad_Bse,) = torch.autograd.grad(inner_Bsh, inner_Bse, grad_BsD @ down_Dh)
                grad_Dh = _gradient(grad_BsD, inner_Bsh.detach(), False)
                grad_eD = _gradient(grad_Bse, x_BsD, False)
                of_bias = [grad_Bse.sum((0, 1))] if bias_e else []
                product_BsD = grad_Bse @ gate_up_eD
                grad_x_BsD = product_BsD if grad_x_BsD is None else grad_x_BsD.add_(product_BsD)
                yield torch.cat([g.flatten() for g in (grad_eD, grad_Dh, *of_bias)]).to(
                    ctx.visits.dtype
                )

        sum_P = transfers.summed_at_home(gradients(), ctx.visits.gradients)
        return grad_x_BsD, sum_P.to(packed_P.dtype), None, None, None


def _weight_and_bias(part_eD: Tensor, width: int) -> tuple[Tensor, Tensor | None]:
    """Split a part into the weight of this width, and its last column as the bias if it has one."""
    bias_e = part_eD[:, width] if part_eD.shape[1] > width else None
    return part_eD[:, :width], bias_e


def _gradient(grad_Bse: Tensor, x_BsD: Tensor, with_bias: bool) -> Tensor:
    """Return the gradient of a weight [e, D], or [e, D + 1] with that of its bias."""
    grad_te = grad_Bse.flatten(0, 1)
    grad_eD = grad_te.T @ x_BsD.flatten(0, 1)
    return torch.cat([grad_eD, grad_te.sum(0)[:, None]], 1) if with_bias else grad_eD


def _unpacked(part_P: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """Return views of the tensors that a part packs."""
    pieces = part_P.split([shape.numel() for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
