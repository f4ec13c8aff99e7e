"""Any attention with any MLP: each part as a method builds it, joined on one stream.

The stream between blocks is replicated if both parts are of a replicated stream, else a sequence
shard. On a shard, a part of a replicated stream gathers its input and slices its output: traffic of
the edge, as where a whole model's stream is gathered and sliced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Generic, TypeVar

from torch import Tensor

from methods import expert, tp, tp_sp, tsp, ulysses
from odysseus.config import pairs
from odysseus.config.run import RunConfig
from odysseus.method import (
    ATTENTION_SPLIT,
    MLP_SPLIT,
    Method,
    check_intermediate_size,
    of_the_shard,
)
from odysseus.model.decoder import Attention
from odysseus.model.experts import MixtureOfExperts
from odysseus.model.kernels import Kernels
from odysseus.model.layers import Linear
from odysseus.model.mlp import MLP
from odysseus.model.pending import Pending
from odysseus.parallel import collectives
from odysseus.parallel.mesh import Mesh

Module = TypeVar("Module", Attention, MLP | MixtureOfExperts)


@dataclass(frozen=True)
class Part(Generic[Module]):
    """An attention or an MLP. :class:`odysseus.method.Method` explains the attributes."""

    build: Callable[[RunConfig, Mesh, Kernels], Module]
    split: Mapping[str, int] = field(default_factory=dict)
    replicated: bool = False
    positions: Callable[[Tensor, Mesh], Tensor] = of_the_shard
    check: Callable[[RunConfig], None] = lambda run: None


def _check_local(run: RunConfig) -> None:
    """Raise ValueError unless a rank has all tokens of its sequence axis."""
    if run.sequence_size > 1:
        raise ValueError(
            f"method = {run.method}: attention local computes on a rank's own tokens, not on "
            f"sequence_parallel_size = {run.sequence_size} shards of them; valid: "
            "sequence_parallel_size = 1, with or without a ring"
        )


ATTENTIONS: dict[str, Part[Attention]] = {
    "tp": Part(tp.attention, ATTENTION_SPLIT, True, tp_sp.gather_positions),
    "tp_sp": Part(tp_sp.attention, ATTENTION_SPLIT, positions=tp_sp.gather_positions),
    "ulysses": Part(ulysses.attention, positions=ulysses.positions, check=ulysses.check),
    "local": Part(ulysses.attention, check=_check_local),
    "tsp": Part(tsp.attention, ATTENTION_SPLIT, check=tsp.check_attention),
}
MLPS: dict[str, Part[MLP | MixtureOfExperts]] = {
    "tp": Part(tp.mlp, MLP_SPLIT, True, check=check_intermediate_size),
    "tp_sp": Part(tp_sp.mlp, MLP_SPLIT, check=check_intermediate_size),
    "zero": Part(ulysses.mlp),
    "tsp": Part(tsp.mlp, MLP_SPLIT, check=tsp.check_mlp),
    "expert": Part(expert.mlp, expert.SPLIT, check=expert.check),
}


@cache
def pair(name: str) -> Method:
    """Return the method with a pair's name, ``ATTENTION+MLP``.

    Raises:
        KeyError: the name is none of a pair.
    """
    of_attention, of_mlp = pairs.parts_of(name)
    attention, mlp = ATTENTIONS[of_attention], MLPS[of_mlp]

    def check(run: RunConfig) -> None:
        attention.check(run)
        mlp.check(run)

    replicated = attention.replicated and mlp.replicated
    return Method(
        name=name,
        attention=attention.build if replicated else on_the_shard(attention),
        mlp=mlp.build if replicated else on_the_shard(mlp),
        split={**attention.split, **mlp.split},
        replicated=replicated,
        experts=True,
        positions=attention.positions,
        check=check,
    )


def on_the_shard(part: Part[Module]) -> Callable[[RunConfig, Mesh, Kernels], Module]:
    """Return a function that builds the part for a stream that is a sequence shard."""
    if not part.replicated:
        return part.build

    def build(run: RunConfig, mesh: Mesh, kernels: Kernels) -> Module:
        module = part.build(run, mesh, kernels)
        if isinstance(module, Attention):
            _join(module.qkv_proj, module.o_proj, mesh)
        elif isinstance(module, MixtureOfExperts):
            reduced = module.leave
            module.enter = partial(collectives.all_gather, axis=mesh.edge)
            module.leave = lambda x: collectives.take_shard(reduced(x), mesh.edge)
        else:
            _join(module.gate_up_proj, module.down_proj, mesh)
        return module

    return build


def _join(first: Linear, last: Linear, mesh: Mesh) -> None:
    """Gather the first layer's input, and slice the last one's output."""
    column, row = first.project, last.project

    def gathered(x_BsD: Tensor, weight: Tensor, bias: Tensor | None) -> Pending:
        return column(collectives.all_gather(x_BsD, mesh.edge), weight, bias)

    def sliced(x_BSc: Tensor, weight: Tensor, bias: Tensor | None) -> Pending:
        whole = row(x_BSc, weight, bias)
        return Pending(lambda: collectives.take_shard(whole.wait(), mesh.edge))

    first.project, last.project = gathered, sliced
