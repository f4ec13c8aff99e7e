"""Tensor parallelism (Megatron-LM, Shoeybi et al., arXiv 1909.08053).

Stream between blocks: replicated. Attention and MLP are each cut by columns, then by rows: the
input needs no communication, and an all-reduce adds the partial sums of the output. Backward begins
with the same all-reduce: between blocks, each rank's gradient is a partial sum.
"""

from __future__ import annotations

from functools import partial

from methods import tp_sp
from odysseus.config.run import RunConfig
from odysseus.method import ATTENTION_SPLIT, MLP_SPLIT, Method, check_intermediate_size
from odysseus.model.decoder import Attention
from odysseus.model.experts import MixtureOfExperts
from odysseus.model.kernels import Kernels
from odysseus.model.mlp import MLP
from odysseus.parallel import collectives
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.tensor_parallel import linear_all_reduce, share_kv_gradients


def attention(run: RunConfig, mesh: Mesh, kernels: Kernels) -> Attention:
    """Build this rank's attention: its heads of q, k and v, its columns of the output weight."""
    return Attention(
        run.architecture,
        kernels,
        shards=mesh.tensor.size,
        row=partial(linear_all_reduce, axis=mesh.tensor),
        shared=share_kv_gradients(run, mesh),
    )


def mlp(run: RunConfig, mesh: Mesh, kernels: Kernels) -> MLP | MixtureOfExperts:
    """Build this rank's MLP: its rows of gate and up, and its columns of down; with experts, of
    each of them, and one all-reduce of their sum."""
    if run.architecture.num_experts:
        return MixtureOfExperts(
            run.architecture,
            kernels,
            shards=mesh.tensor.size,
            leave=lambda x: collectives.start_all_reduce_(x, mesh.tensor).wait(),
        )
    return MLP(
        run.architecture,
        kernels,
        shards=mesh.tensor.size,
        row=partial(linear_all_reduce, axis=mesh.tensor),
    )


METHOD = Method(
    name="tp",
    attention=attention,
    mlp=mlp,
    split=ATTENTION_SPLIT | MLP_SPLIT,
    replicated=True,
    experts=True,
    positions=tp_sp.gather_positions,
    check=check_intermediate_size,
)
