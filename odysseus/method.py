"""Method: a value that says how a block is built and which of its weights are cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.config.sizes import nearest_multiples
from odysseus.model.decoder import MLP, Attention
from odysseus.model.kernels import Kernels
from odysseus.parallel.mesh import Mesh

Edge = Callable[[Tensor, Mesh], Tensor]


def unchanged(x: Tensor, mesh: Mesh) -> Tensor:
    """Return the shard itself: the edge of a method whose stream is the sequence shard."""
    return x


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
        enter: Makes the blocks' stream of the embedded shard.
        leave: Makes the head's shard of the blocks' stream. The elements that it discards get zero
            gradient.
        positions: Makes the position ids that this rank's attention needs of the shard's.
        check: Raises ValueError, before anything starts, if the sizes do not fit the method.
    """

    name: str
    attention: Callable[[RunConfig, Mesh, Kernels], Attention]
    mlp: Callable[[RunConfig, Mesh, Kernels], MLP]
    split: Mapping[str, int] = field(default_factory=dict)
    enter: Edge = unchanged
    leave: Edge = unchanged
    positions: Edge = unchanged
    check: Callable[[RunConfig], None] = lambda run: None


ATTENTION_SPLIT = {
    "self_attn.q_proj": 0,
    "self_attn.k_proj": 0,
    "self_attn.v_proj": 0,
    "self_attn.o_proj": 1,
}
MLP_SPLIT = {"mlp.gate_proj": 0, "mlp.up_proj": 0, "mlp.down_proj": 1}


def check_intermediate_size(run: RunConfig) -> None:
    """Raise ValueError unless the MLP's width can be cut over the sequence axis."""
    width, n = run.architecture.intermediate_size, run.sequence_size
    if width % n:
        raise ValueError(
            f"model.intermediate_size = {width} does not divide by sequence_parallel_size = {n}, "
            f"which method = {run.method} needs; nearest valid: {nearest_multiples(width, n)}"
        )
