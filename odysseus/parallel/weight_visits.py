"""Linear layers and an MLP whose tokens and weights are both cut over one axis: tokens stay, and
every part of a weight visits each rank (TSP, Shyam et al., arXiv 2604.26294).

In attention the owners broadcast their parts in turn. In the MLP the parts go around a ring. What
visits is not kept: backward brings it again and sums the gradient of each part at its owner. B
batch, s tokens of this rank, D width, e a part of an inner width, P elements of a part, n ranks of
the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


def start_linear_of(
    owner: int, x_BsD: Tensor, part_eD: Tensor, bias_e: Tensor | None, visits: Visits
) -> Pending:
    """Forward: the owner broadcasts its part of a weight; matmul, [B, s, D] to [B, s, e].
    Backward: broadcasts it again beside the matmul of its gradient; the sum of that gradient at
    the owner runs beside the matmul of the input's gradient.
    Bytes: (n-1)/n of the part, in forward and in backward, and of its gradient.
    Meaning: every rank applies the owner's part of a weight and its bias to its own tokens.

    Args:
        part_eD: This rank's own part of the weight.
        bias_e: This rank's own part of the bias; it is sent as one more column of the weight.
    """
    with torch.no_grad():
        started = _start_visit(owner, part_eD, bias_e, visits)
    return Pending(lambda: _LinearOf.apply(x_BsD, part_eD, bias_e, owner, started, visits))


def each_owners(start: Callable[[int], Pending], owners: int) -> Iterator[Tensor]:
    """Yield the result of each owner in turn, while the broadcast of the next one runs."""
    started = start(0)
    for owner in range(1, owners):
        following = start(owner)
        result, started = started.wait(), following
        yield result
        del result  # and, with it, the weight that visited
    yield started.wait()


def linear_of_parts(
    x_BsC: Tensor, part_De: Tensor, bias_D: Tensor | None, visits: Visits
) -> Pending:
    """Row-parallel linear of whole rows of x, [B, s, n·e] to [B, s, D]: the sum over all owners'
    parts."""

    def summed() -> Tensor:
        xs_BsC = x_BsC.chunk(visits.axis.size, dim=-1)
        products = each_owners(
            lambda owner: start_linear_of(owner, xs_BsC[owner], part_De, None, visits),
            visits.axis.size,
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
    Backward: they go around again, and the sum of each part's gradients follows it to its owner.
    Bytes: n-1 parts, in forward and in backward, and n-1 gradients of a part.
    Meaning: every rank applies all parts of the MLP to its own tokens."""
    parts = [part for part in (gate_up_eD, down_Dh, gate_up_bias_e) if part is not None]
    return _SwigluOfParts.apply(x_BsD, swiglu, visits, *parts)


class _LinearOf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BsD: Tensor,
        part_eD: Tensor,
        bias_e: Tensor | None,
        owner: int,
        started: Pending,
        visits: Visits,
    ) -> Tensor:
        ctx.save_for_backward(x_BsD, part_eD, bias_e)
        ctx.owner, ctx.visits = owner, visits
        weight_eD, visiting_e = _weight_and_bias(started.wait(), x_BsD.shape[-1])
        y_Bse = F.linear(x_BsD, weight_eD)
        # A result that is a view could not be rotated in place.
        return y_Bse if visiting_e is None else y_Bse.add_(visiting_e)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_Bse,) = grads
        x_BsD, part_eD, bias_e = ctx.saved_tensors
        owner, visits = ctx.owner, ctx.visits
        started = _start_visit(owner, part_eD, bias_e, visits)
        grad_eD = _gradient(grad_Bse, x_BsD, bias_e is not None)
        reduced = transfers.start_reduce_(grad_eD.to(visits.dtype), owner, visits.gradients)
        del grad_eD
        grad_x_BsD = grad_Bse @ _weight_and_bias(started.wait(), x_BsD.shape[-1])[0]
        sum_eD = reduced.wait().to(part_eD.dtype)
        own = _weight_and_bias(sum_eD, x_BsD.shape[-1])
        of_weight, of_bias = own if visits.axis.rank == owner else (None, None)
        return grad_x_BsD, of_weight, of_bias, None, None, None


class _SwigluOfParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BsD: Tensor, swiglu: Callable[[Tensor], Tensor], visits: Visits, *parts: Tensor
    ) -> Tensor:
        y_BsD, kept_Bse = None, []
        for _, part_P in transfers.rotated(_packed(parts), visits.weights):
            gate_up_eD, down_Dh, *bias_e = _unpacked(part_P, parts)
            kept_Bse.append(F.linear(x_BsD, gate_up_eD, *bias_e))
            product_BsD = F.linear(swiglu(kept_Bse[-1]), down_Dh)
            y_BsD = product_BsD if y_BsD is None else y_BsD.add_(product_BsD)
            del part_P, gate_up_eD, down_Dh, bias_e, product_BsD  # before the next part comes
        ctx.save_for_backward(x_BsD, *parts, *kept_Bse)
        ctx.count, ctx.swiglu, ctx.visits = len(parts), swiglu, visits
        assert y_BsD is not None
        return y_BsD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_BsD,) = grads
        x_BsD, *saved = ctx.saved_tensors
        parts, kept_Bse = saved[: ctx.count], saved[ctx.count :]
        grad_x_BsD: Tensor | None = None

        def gradients() -> Iterator[Tensor]:
            nonlocal grad_x_BsD
            visiting = transfers.rotated(_packed(parts), ctx.visits.weights)
            of_parts = iter(kept_Bse)
            for _, part_P in visiting:
                gate_up_Bse = next(of_parts)
                gate_up_eD, down_Dh, *bias_e = _unpacked(part_P, parts)
                inner_Bse = gate_up_Bse.detach().requires_grad_()
                with torch.enable_grad():
                    inner_Bsh = ctx.swiglu(inner_Bse)
                (grad_Bse,) = torch.autograd.grad(inner_Bsh, inner_Bse, grad_BsD @ down_Dh)
                grad_Dh = _gradient(grad_BsD, inner_Bsh.detach(), False)
                grad_eD = _gradient(grad_Bse, x_BsD, False)
                of_bias = [grad_Bse.sum((0, 1))] if bias_e else []
                product_BsD = grad_Bse @ gate_up_eD
                grad_x_BsD = product_BsD if grad_x_BsD is None else grad_x_BsD.add_(product_BsD)
                gradient_P = _packed([grad_eD, grad_Dh, *of_bias]).to(ctx.visits.dtype)
                del part_P, gate_up_eD, down_Dh, bias_e, grad_eD, grad_Dh, inner_Bsh, grad_Bse
                yield gradient_P
                del gradient_P

        sum_P = transfers.reduced_at_owner(gradients(), ctx.visits.gradients)
        return grad_x_BsD, None, None, *_unpacked(sum_P.to(parts[0].dtype), parts)


def _start_visit(owner: int, part_eD: Tensor, bias_e: Tensor | None, visits: Visits) -> Pending:
    """Start the broadcast of the owner's part, with its bias as the last column."""
    height, width = part_eD.shape
    if visits.axis.rank != owner:
        visiting = part_eD.new_empty(height, width + (bias_e is not None))
    elif bias_e is None:
        visiting = part_eD.contiguous()
    else:
        visiting = torch.cat([part_eD, bias_e[:, None]], dim=1)
    return transfers.start_broadcast_(visiting, owner, visits.weights)


def _weight_and_bias(part_eD: Tensor, width: int) -> tuple[Tensor, Tensor | None]:
    """Split a part into the weight of this width, and its last column as the bias if it has one."""
    bias_e = part_eD[:, width] if part_eD.shape[1] > width else None
    return part_eD[:, :width], bias_e


def _gradient(grad_Bse: Tensor, x_BsD: Tensor, with_bias: bool) -> Tensor:
    """Return the gradient of a weight [e, D], or [e, D + 1] with that of its bias."""
    grad_te = grad_Bse.flatten(0, 1)
    grad_eD = grad_te.T @ x_BsD.flatten(0, 1)
    return torch.cat([grad_eD, grad_te.sum(0)[:, None]], 1) if with_bias else grad_eD


def _packed(parts: Sequence[Tensor]) -> Tensor:
    """Return all elements of some tensors in one."""
    return torch.cat([part.flatten() for part in parts])


def _unpacked(part_P: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """Return views of the tensors that another rank has packed, of the shapes of this one's."""
    pieces = part_P.split([part.numel() for part in parts])
    return [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]
