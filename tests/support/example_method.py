"""A fifth method, to start from: attention as in Ulysses, MLP as in TP-SP. Odysseus reversed.

Stream between blocks: a sequence shard. Around attention an all-to-all trades tokens for heads,
with whole weights; the MLP's are cut, so that it gathers the sequence on the way in and
reduce-scatters partial sums on the way out.
"""

from dataclasses import replace
from functools import partial

from odysseus.config.run import RunConfig
from odysseus.method import MLP_SPLIT, Method, check_intermediate_size
from odysseus.model.decoder import MLP, Attention
from odysseus.model.kernels import Kernels
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
