"""Attention as a template: heads exchanged as in Ulysses, beside an MLP with whole weights.

The stream between blocks is a sequence shard. Around attention, which has whole weights, an
all-to-all exchanges tokens for heads.
"""

from dataclasses import replace

from methods import ulysses
from odysseus.config.run import RunConfig
from odysseus.method import Method
from odysseus.model.decoder import Attention
from odysseus.model.kernels import Kernels
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.ulysses import all_to_all_attend


def attention(run: RunConfig, mesh: Mesh, kernels: Kernels) -> Attention:
    if mesh.sequence.size > 1:
        kernels = replace(kernels, attend=all_to_all_attend(kernels.attend, mesh.sequence))
    return Attention(run.architecture, kernels)


METHOD = Method(name="example_attention", attention=attention, mlp=ulysses.mlp)
