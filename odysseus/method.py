"""Method: a value that says how a block is built and which of its weights are cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.config.sizes import nearest_multiples
from odysseus.config.vocabulary import EMBEDDING, HEAD
from odysseus.model.decoder import Attention
from odysseus.model.experts import MixtureOfExperts
from odysseus.model.kernels import Kernels
from odysseus.model.mlp import MLP
from odysseus.parallel import collectives
from odysseus.parallel.mesh import Mesh


def of_the_shard(position_ids: Tensor, mesh: Mesh) -> Tensor:
    """Return the shard's own position ids."""
    return position_ids


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to spread a decoder block over the ranks of the sequence axis.

    With every method a rank reads the same shard of tokens, and the ranks return the same sum of
    token losses; docs/architecture.md has the five rules.

    Attributes:
        name: Name in ``--method``, rows and titles.
        attention: Builds one rank's attention module.
        mlp: Builds one rank's MLP module.
        split: Maps a weight, by its Hugging Face name within a block, to the dimension along which
            it is cut. Other weights are whole.
        replicated: Whether every rank has the whole sequence in the stream between blocks, and a
            partial sum of its gradient; else the stream is a sequence shard.
        positions: Makes the position ids that this rank's attention needs of the shard's.
        experts: Whether `mlp` builds experts for a model that has them.
        check: Raises ValueError, before anything starts, if the sizes do not fit the method.
    """

    name: str
    attention: Callable[[RunConfig, Mesh, Kernels], Attention]
    mlp: Callable[[RunConfig, Mesh, Kernels], MLP | MixtureOfExperts]
    split: Mapping[str, int] = field(default_factory=dict)
    replicated: bool = False
    positions: Callable[[Tensor, Mesh], Tensor] = of_the_shard
    experts: bool = False
    check: Callable[[RunConfig], None] = lambda run: None

    def enter(self, x_BsD: Tensor, mesh: Mesh) -> Tensor:
        """Make the blocks' stream of a rank's shard of the embedding's output."""
        return collectives.all_gather(x_BsD, mesh.edge) if self.replicated else x_BsD

    def leave(self, x_BSD: Tensor, mesh: Mesh) -> Tensor:
        """Make a rank's shard of the blocks' stream. The elements that it discards get zero
        gradient."""
        return collectives.take_shard(x_BSD, mesh.edge) if self.replicated else x_BSD

    def cuts(self, run: RunConfig) -> Mapping[str, int]:
        """Return the dimension along which each weight of a run's model is cut: `split`, on a
        tensor axis of its own every matrix of a block, and the embedding and head that are cut by
        vocabulary."""
        split = self.split if run.tensor_parallel_size == 1 else {**ATTENTION_SPLIT, **MLP_SPLIT}
        return {**split, **{VOCABULARY_NAMES[part]: 0 for part in run.vocabulary_cuts}}


ATTENTION_SPLIT = {
    "self_attn.q_proj": 0,
    "self_attn.k_proj": 0,
    "self_attn.v_proj": 0,
    "self_attn.o_proj": 1,
}
MLP_SPLIT = {
    f"{mlp}.{name}": dimension
    for mlp in ("mlp", "experts", "shared_experts")
    for name, dimension in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1))
}
VOCABULARY_NAMES = {EMBEDDING: "model.embed_tokens", HEAD: "lm_head"}
"""Hugging Face names of the parts of a model that can be cut by vocabulary."""


def check_intermediate_size(run: RunConfig) -> None:
    """Raise ValueError unless the MLPs' widths can be cut over the ranks that share them."""
    n, axis = run.cutting_ranks, "sequence" if run.tensor_parallel_size == 1 else "tensor"
    for name in ("intermediate_size", "shared_expert_intermediate_size"):
        width = getattr(run.architecture, name)
        if width % n:
            raise ValueError(
                f"model.{name} = {width} does not divide by {axis}_parallel_size = {n}, "
                f"which method = {run.method} needs; nearest valid: {nearest_multiples(width, n)}"
            )
