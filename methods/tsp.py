"""Tensor and sequence parallelism on one axis (TSP, Shyam et al., arXiv 2604.26294).

Stream between blocks: a sequence shard. Weights are cut as in `tp_sp`, but tokens stay where they
are: every part of a weight visits each rank. In attention the owner of some heads broadcasts their
weights, all ranks project their own tokens, and keys and values of these heads are exchanged as in
ring attention, for which a rank has an early and a late part of the sequence. In the MLP the parts
go around a ring.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.method import check_intermediate_size
from odysseus.model.decoder import Attention
from odysseus.model.documents import Documents
from odysseus.model.kernels import Kernels
from odysseus.model.layers import RMSNorm
from odysseus.model.mlp import MLP
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.ring import choose_ring
from odysseus.parallel.tensor_parallel import share_kv_gradients
from odysseus.parallel.weight_visits import (
    Visits,
    each_owners,
    linear_of_parts,
    start_linear_of,
    swiglu_of_parts,
)


class VisitedAttention(Attention):
    """Attention to which each rank's heads come in turn."""

    def __init__(self, run: RunConfig, mesh: Mesh, kernels: Kernels, visits: Visits) -> None:
        super().__init__(
            run.architecture,
            kernels,
            shards=visits.axis.size,
            row=partial(linear_of_parts, visits=visits),
            shared=share_kv_gradients(run, mesh),
        )
        self.visits = visits

    def attend(
        self, norm: RMSNorm, x_BSD: Tensor, table: Tensor, documents: Documents | None
    ) -> Tensor:
        """[B, s, H·K]: :meth:`Attention.attend` of this rank's tokens, with all heads."""
        normed_BsD, layer = norm(x_BSD), self.qkv_proj
        weight = layer.shared(layer.weight)
        bias = None if layer.bias is None else layer.shared(layer.bias)
        projected = each_owners(
            lambda owner: start_linear_of(owner, normed_BsD, weight, bias, self.visits),
            self.visits.axis.size,
        )
        outputs = [self.attend_projected(qkv_BsW, table, documents) for qkv_BsW in projected]
        return torch.cat(outputs, dim=2)


class VisitedMLP(MLP):
    """An MLP whose parts come to each rank in turn."""

    def __init__(self, run: RunConfig, kernels: Kernels, visits: Visits) -> None:
        super().__init__(run.architecture, kernels, shards=visits.axis.size)
        self.visits = visits

    def forward(self, x_BSD: Tensor) -> Tensor:
        y_BsD = swiglu_of_parts(
            *(x_BSD, self.gate_up_proj.weight, self.gate_up_proj.bias, self.down_proj.weight),
            self.swiglu,
            self.visits,
        )
        return y_BsD if self.down_proj.bias is None else y_BsD + self.down_proj.bias


def attention(run: RunConfig, mesh: Mesh, kernels: Kernels) -> Attention:
    """Build this rank's part of attention."""
    if mesh.sequence.size == 1:
        return Attention(run.architecture, kernels)
    if run.token_axes != (mesh.sequence.size, 1):  # of a method from a file
        raise ValueError(
            f"method = {run.method}: attention tsp needs the tokens of a ring over the sequence "
            "axis; valid: --attention tsp"
        )
    kernels = choose_ring(run, mesh.sequence, kernels)
    return VisitedAttention(run, mesh, kernels, Visits(mesh.sequence, run.reduce_dtype))


def mlp(run: RunConfig, mesh: Mesh, kernels: Kernels) -> MLP:
    """Build this rank's part of the MLP."""
    if mesh.sequence.size == 1:
        return MLP(run.architecture, kernels)
    return VisitedMLP(run, kernels, Visits(mesh.sequence, run.reduce_dtype))


def check_attention(run: RunConfig) -> None:
    """Raise ValueError unless keys and values go around the sequence axis alone."""
    if run.ring_parallel_size > 1:
        raise ValueError(
            f"ring_parallel_size = {run.ring_parallel_size} is not for method = {run.method}, "
            "whose attention passes keys and values around the sequence axis; valid: 1"
        )
    _check(run)


def check_mlp(run: RunConfig) -> None:
    """Raise ValueError unless the MLP's width divides, and its tokens are computed at once."""
    check_intermediate_size(run)
    if run.architecture.num_experts:
        raise ValueError(
            f"model.num_experts = {run.architecture.num_experts} is not for method = {run.method}, "
            "whose MLP passes weights from rank to rank; valid: --mlp zero, tp or tp_sp"
        )
    if run.tiled_mlp_compute:
        raise ValueError(
            f"tiled_mlp_compute = true is not for method = {run.method}: each tile would send all "
            "weights, of which a rank holds one part at a time; valid: false"
        )
    _check(run)


def _check(run: RunConfig) -> None:
    if run.compile:
        raise ValueError(
            f"compile = true is not tried with method = {run.method}; valid: compile = false"
        )
