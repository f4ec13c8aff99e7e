"""Linear layers whose weight is cut over the sequence axis: column-parallel in, row-parallel out.

B batch, S tokens of the whole sequence, s = S/n of this rank, D width, e and c this rank's cut of
an inner width. Megatron-LM (arXiv 1909.08053) joins the cuts with all-reduce, Korthikanti et al.
(arXiv 2205.05198) with all-gather and reduce-scatter.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odysseus import collectives
from odysseus.config import RunConfig
from odysseus.mesh import Axis, Mesh
from odysseus.model import Project


def linear_all_reduce(
    x_BSc: Tensor, weight_Dc: Tensor, bias_D: Tensor | None, axis: Axis
) -> Tensor:
    """Row-parallel linear on a replicated stream: [B, S, c] to [B, S, D], summed over the axis."""
    y_BSD = collectives.all_reduce_(F.linear(x_BSc, weight_Dc), axis)
    return y_BSD if bias_D is None else y_BSD + bias_D


def linear_reduce_scatter(
    x_BSc: Tensor, weight_Dc: Tensor, bias_D: Tensor | None, axis: Axis
) -> Tensor:
    """Row-parallel linear into a sequence shard: [B, S, c] to [B, s, D], summed over the axis."""
    y_BsD = collectives.reduce_scatter(F.linear(x_BSc, weight_Dc), axis)
    return y_BsD if bias_D is None else y_BsD + bias_D


def gather_linear(
    x_BsD: Tensor, weight_eD: Tensor, bias_e: Tensor | None, axis: Axis, regather: bool
) -> Tensor:
    """Column-parallel linear out of a sequence shard: [B, s, D] to [B, S, e].

    Args:
        regather: Keep only the shard for backward and gather it again there, as arXiv 2205.05198
            §4.2.2 describes; otherwise the gathered input stays until backward.
    """
    if axis.size == 1:
        return F.linear(x_BsD, weight_eD, bias_e)
    if not regather:
        return F.linear(collectives.all_gather(x_BsD, axis), weight_eD, bias_e)
    y_BSe = _GatherLinear.apply(x_BsD, weight_eD, axis)
    return y_BSe if bias_e is None else y_BSe + bias_e


class _GatherLinear(torch.autograd.Function):
    """All-gather, then matmul; backward hides the second all-gather behind the input gradient's
    matmul, and its reduce-scatter behind the weight gradient's."""

    @staticmethod
    def forward(ctx: Any, x_BsD: Tensor, weight_eD: Tensor, axis: Axis) -> Tensor:
        ctx.save_for_backward(x_BsD, weight_eD)
        ctx.axis = axis
        gathered, work = collectives.start_all_gather(x_BsD, axis)
        work.wait()
        return F.linear(collectives.unstack(gathered, 1), weight_eD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad_BSe,) = grads
        x_BsD, weight_eD = ctx.saved_tensors
        gathered, gathering = collectives.start_all_gather(x_BsD, ctx.axis)
        grad_BSD = grad_BSe @ weight_eD
        gathering.wait()
        grad_BsD, scattering = collectives.start_reduce_scatter(grad_BSD, ctx.axis, 1)
        x_BSD = collectives.unstack(gathered, 1)
        grad_eD = grad_BSe.flatten(0, 1).T @ x_BSD.flatten(0, 1)
        scattering.wait()
        return grad_BsD, grad_eD, None


def with_shared_kv_gradients(project: Project, run: RunConfig, mesh: Mesh) -> Project:
    """A column projection of q, k and v whose kv rows several ranks hold copies of.

    With fewer kv heads than ranks each kv head serves a run of neighbouring ranks; their gradients
    of its rows are summed so that the copies stay one weight.
    """
    first_row = run.architecture.query_width // mesh.sequence.size

    def shared(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        def own(tensor: Tensor) -> Tensor:
            axis, dtype = mesh.key_value_copies, run.reduce_dtype
            return collectives.sum_gradient_rows(tensor, first_row, axis, dtype)

        return project(x, own(weight), None if bias is None else own(bias))

    return shared
