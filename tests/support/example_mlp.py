"""An MLP as a template: cut as in TP-SP, beside attention of Ulysses. It is Odysseus reversed.

The stream between blocks is a sequence shard. The MLP's weights are cut, so it gathers the sequence
before, and reduce-scatters partial sums after.
"""

from functools import partial

from methods import ulysses
from odysseus.config.run import RunConfig
from odysseus.method import MLP_SPLIT, Method, check_intermediate_size
from odysseus.model.kernels import Kernels
from odysseus.model.mlp import MLP
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.tensor_parallel import gather_linear, linear_reduce_scatter


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
    attention=ulysses.attention,
    mlp=mlp,
    split=MLP_SPLIT,
    check=check_intermediate_size,
)
