"""Tensor parallelism with sequence parallelism (Korthikanti et al., arXiv 2205.05198).

Stream between blocks: a sequence shard. Each half-block all-gathers its input and reduce-scatters
the partial sums of its output. As in the paper (§4.2.2), the gathered input is not kept but
gathered again in backward, unless `regather` is false.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.method import ATTENTION_SPLIT, MLP_SPLIT, Method, check_intermediate_size
from odysseus.model.decoder import Attention
from odysseus.model.experts import MixtureOfExperts
from odysseus.model.kernels import Kernels
from odysseus.model.mlp import MLP
from odysseus.parallel import collectives
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.tensor_parallel import (
    gather_linear,
    linear_reduce_scatter,
    share_kv_gradients,
)


def attention(run: RunConfig, mesh: Mesh, kernels: Kernels) -> Attention:
    """Build this rank's attention: all-gather, attention of its heads, reduce-scatter."""
    return Attention(
        run.architecture,
        kernels,
        shards=mesh.tensor.size,
        column=partial(gather_linear, axis=mesh.tensor, regather=run.regather),
        row=partial(linear_reduce_scatter, axis=mesh.tensor),
        shared=share_kv_gradients(run, mesh),
    )


def mlp(run: RunConfig, mesh: Mesh, kernels: Kernels) -> MLP | MixtureOfExperts:
    """Build this rank's MLP: all-gather, its part of the intermediate size, reduce-scatter.

    With experts, each rank has a part of every expert, and the gathered input is kept: so are its
    copies in the order of the experts.
    """
    if run.architecture.num_experts:
        return MixtureOfExperts(
            run.architecture,
            kernels,
            shards=mesh.tensor.size,
            enter=partial(collectives.all_gather, axis=mesh.tensor),
            leave=lambda x: collectives.start_reduce_scatter(x, mesh.tensor).wait(),
        )
    # A tile's backward directly follows its recomputed forward: the gathered input still exists.
    regather = run.regather and not run.tiled_mlp_compute
    return MLP(
        run.architecture,
        kernels,
        shards=mesh.tensor.size,
        column=partial(gather_linear, axis=mesh.tensor, regather=regather),
        row=partial(linear_reduce_scatter, axis=mesh.tensor),
    )


def gather_positions(position_ids: Tensor, mesh: Mesh) -> Tensor:
    """Gather the position ids of the whole sequence, which attention needs."""
    return collectives.all_gather(position_ids, mesh.edge)


METHOD = Method(
    name="tp_sp",
    attention=attention,
    mlp=mlp,
    split=ATTENTION_SPLIT | MLP_SPLIT,
    experts=True,
    positions=gather_positions,
    check=check_intermediate_size,
)
