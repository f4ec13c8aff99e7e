"""Tensor parallelism (Megatron-LM, Shoeybi et al., arXiv 1909.08053).

Stream between blocks: replicated. Attention and MLP are each cut by columns, then rows: nothing
is sent on the way in, an all-reduce joins the partial sums on the way out. In backward the same
all-reduce comes first: between blocks every rank's gradient is its own part of a sum.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.method import ATTENTION_SPLIT, MLP_SPLIT, Method, check_intermediate_size
from odysseus.model.decoder import MLP, Attention
from odysseus.model.kernels import Kernels
from odysseus.model.layers import local
from odysseus.parallel import collectives
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.tensor_parallel import linear_all_reduce, with_shared_kv_gradients


def attention(run: RunConfig, mesh: Mesh, kernels: Kernels) -> Attention:
    return Attention(
        run.architecture,
        kernels,
        shards=mesh.sequence.size,
        column=with_shared_kv_gradients(local, run, mesh),
        row=partial(linear_all_reduce, axis=mesh.sequence),
    )


def mlp(run: RunConfig, mesh: Mesh, kernels: Kernels) -> MLP:
    return MLP(
        run.architecture,
        kernels,
        shards=mesh.sequence.size,
        row=partial(linear_all_reduce, axis=mesh.sequence),
    )


def gather(x: Tensor, mesh: Mesh) -> Tensor:
    """Shard to whole sequence, outside the blocks."""
    return collectives.all_gather(x, mesh.edge)


def take_shard(x: Tensor, mesh: Mesh) -> Tensor:
    """Whole sequence to shard."""
    return collectives.take_shard(x, mesh.edge)


METHOD = Method(
    name="tp",
    attention=attention,
    mlp=mlp,
    split=ATTENTION_SPLIT | MLP_SPLIT,
    enter=gather,
    leave=take_shard,
    positions=gather,
    check=check_intermediate_size,
)
