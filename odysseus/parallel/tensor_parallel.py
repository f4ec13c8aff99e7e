"""Linear layers whose weight is cut over the sequence axis: column-parallel in, row-parallel out.

Megatron-LM (arXiv 1909.08053) joins the cuts with all-reduce, Korthikanti et al. (arXiv 2205.05198)
with all-gather and reduce-scatter. B batch, S tokens of the whole sequence, s = S/n of this rank, D
width, e and c this rank's part of an inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.model.layers import local
from odysseus.model.pending import Pending
from odysseus.parallel import collectives
from odysseus.parallel.mesh import Axis, Mesh


def linear_all_reduce(
    x_BSc: Tensor, weight_Dc: Tensor, bias_D: Tensor | None, axis: Axis
) -> Pending:
    """Row-parallel linear on a replicated stream: [B, S, c] to [B, S, D], summed over the axis."""
    return _biased(collectives.start_all_reduce_(F.linear(x_BSc, weight_Dc), axis), bias_D)


def linear_reduce_scatter(
    x_BSc: Tensor, weight_Dc: Tensor, bias_D: Tensor | None, axis: Axis
) -> Pending:
    """Row-parallel linear into a sequence shard: [B, S, c] to [B, s, D], summed over the axis."""
    return _biased(collectives.start_reduce_scatter(F.linear(x_BSc, weight_Dc), axis), bias_D)


def gather_linear(
    x_BsD: Tensor, weight_eD: Tensor, bias_e: Tensor | None, axis: Axis, regather: bool
) -> Pending:
    """Column-parallel linear out of a sequence shard: [B, s, D] to [B, S, e].

    Args:
        regather: Keep only the shard for backward and gather it again there, as arXiv 2205.05198
            §4.2.2 describes; otherwise the gathered input stays until backward.
    """
    if axis.size == 1:
        return local(x_BsD, weight_eD, bias_e)
    if regather:
        return _biased(collectives.start_gathered_linear(x_BsD, weight_eD, axis), bias_e)
    gathered = collectives.start_all_gather(x_BsD, axis)
    return Pending(lambda: F.linear(gathered.wait(), weight_eD, bias_e))


def _biased(product: Pending, bias: Tensor | None) -> Pending:
    return product if bias is None else Pending(lambda: product.wait() + bias)


def share_kv_gradients(run: RunConfig, mesh: Mesh) -> Callable[[Tensor], Tensor]:
    """Return the function of the packed weight of q, k and v that sums the gradients of kv rows.

    With fewer kv heads than ranks, several neighbouring ranks hold a copy of each kv head. They sum
    their gradients of its rows, so that the copies stay equal.
    """
    return partial(
        collectives.sum_gradient_rows,
        first_row=run.architecture.query_width // mesh.tensor.size,
        axis=mesh.key_value_copies,
        dtype=run.reduce_dtype,
    )
