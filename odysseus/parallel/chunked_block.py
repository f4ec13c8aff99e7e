"""A decoder block in chunks of tokens: the collective of one runs beside the matmuls of another.

Only attention sees all tokens at once. A chunk is a slice of every rank's shard, so that what is
gathered of it is n slices, and joining chunks puts each back among its rank's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.model.decoder import Block
from odysseus.model.documents import Documents


def check(run: RunConfig) -> None:
    """Raise ValueError unless the run's blocks can be taken in as many chunks as it says."""
    if run.overlap_chunks == 1:
        return
    if run.method == "ulysses":
        raise ValueError(
            f"overlap_chunks = {run.overlap_chunks} is for tensor-parallel layers, which ulysses "
            "has none of; valid: 1"
        )
    for name, given in (("tiled_mlp_compute", run.tiled_mlp_compute), ("compile", run.compile)):
        if given:
            raise ValueError(
                f"overlap_chunks = {run.overlap_chunks} is not for {name} = true; valid: 1, or "
                f"{name} = false"
            )


class OverlappedBlock(Block):
    """Its stream x has its method's tokens, s; attention's projections have S = n·s."""

    def layer(self, x_BSD: Tensor, table: Tensor, documents: Documents | None) -> Tensor:
        attention, mlp, chunks = self.self_attn, self.mlp, self.tricks.overlap_chunks
        xs = x_BSD.chunk(chunks, dim=1)
        begun = [attention.qkv_proj.begin(self.input_layernorm(x)) for x in xs]
        qkvs = [landing() for landing in begun]
        shards = qkvs[0].shape[1] // xs[0].shape[1]
        o_BSW = attention.of(_joined(qkvs, shards), table, documents)
        begun = [attention.o_proj.begin(o) for o in _cut(o_BSW, shards, chunks)]
        streams, inputs = [], []
        for x, landing in zip(xs, begun, strict=True):
            streams.append(x + landing())
            inputs.append(mlp.gate_up_proj.begin(self.post_attention_layernorm(streams[-1])))
        outputs = []
        try:
            for landing in inputs:
                output = mlp.down_proj.begin(mlp.swiglu(landing()))
                outputs.append(output)
        except BaseException:  # recomputing ends with the last tensor that backward needs
            for landing in outputs:
                landing()
            raise
        ended = [x + landing() for x, landing in zip(streams, outputs, strict=True)]
        return torch.cat(ended, dim=1)


def _joined(chunks_BtW: list[Tensor], shards: int) -> Tensor:
    """[B, S, W] of chunks, each the same slice of every shard."""
    return torch.stack([x.unflatten(1, (shards, -1)) for x in chunks_BtW], dim=2).flatten(1, 3)


def _cut(x_BSW: Tensor, shards: int, chunks: int) -> list[Tensor]:
    """The inverse of :func:`_joined`."""
    return [x.flatten(1, 2) for x in x_BSW.unflatten(1, (shards, chunks, -1)).unbind(2)]
