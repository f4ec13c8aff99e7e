"""A fifth method as a template: attention as in Ulysses, MLP as in TP-SP. It is Odysseus reversed.

The stream between blocks is a sequence shard. Around attention, which has whole weights, an
all-to-all exchanges tokens for heads. The MLP's weights are cut, so it gathers the sequence
before, and reduce-scatters partial sums after.
"""

from dataclasses import replace
from functools import partial

from odysseus.config.run import RunConfig
from odysseus.method import MLP_SPLIT, Method, check_intermediate_size
from odysseus.model.decoder import Attention
from odysseus.model.kernels import Kernels
from odysseus.model.mlp import MLP
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.tensor_parallel import gather_linear, linear_reduce_scatter
from odysseus.parallel.ulysses import all_to_all_attend


def attention(run: RunConfig, mesh: Mesh, kernels: Kernels) -> Attention:
    if mesh.sequence.size > 1:
        kernels = replace(kernels, attend=all_to_all_attend(kernels.attend, mesh.sequence))
    return Attention(run.architecture, kernels)


def mlp(run: RunConfig, mesh: Mesh, kernels: Kernels) -> MLP:
    regather = run.regather and not run.tiled_mlp_compute
    return MLP(
        run.architecture,
        kernels,
        shards=mesh.sequence.size,
        column=partial(gather_linear, axis=mesh.sequence, regather=regather),
        row=partial(linear_reduce_scatter, axis=mesh.sequence),
    )


METHOD = Method(
    name="example",
    attention=attention,
    mlp=mlp,
    split=MLP_SPLIT,
    check=check_intermediate_size,
)
