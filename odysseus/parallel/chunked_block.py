"""A decoder block in chunks of tokens: one chunk's collectives run beside another's matmuls.

Only attention sees all tokens at once. A chunk is a slice of every rank's shard, so a gathered
chunk is n slices, and joining the chunks puts each slice back among the tokens of its rank. B
batch, S tokens of the whole sequence, s = S/n of this rank, t of a chunk, D width, W a projection's
width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.model.decoder import Block
from odysseus.model.documents import Documents
from odysseus.model.mlp import MLP


def check(run: RunConfig) -> None:
    """Raise ValueError unless the run's blocks can be computed in its `overlap_chunks`."""
    if run.overlap_chunks == 1:
        return
    attention, mlp = run.parts
    if attention in ("ulysses", "local", "tsp") or mlp == "tsp":
        part = "MLPs other than tsp" if mlp == "tsp" else "tensor-parallel attention"
        raise ValueError(
            f"overlap_chunks = {run.overlap_chunks} is for {part}, which {run.method} has none of; "
            "valid: 1"
        )
    for name, given in (("tiled_mlp_compute", run.tiled_mlp_compute), ("compile", run.compile)):
        if given:
            raise ValueError(
                f"overlap_chunks = {run.overlap_chunks} is not for {name} = true; valid: 1, or "
                f"{name} = false"
            )


class OverlappedBlock(Block):
    """A decoder block whose tokens are computed in `tricks.overlap_chunks` chunks."""

    def layer(self, x_BSD: Tensor, table: Tensor, documents: Documents | None) -> Tensor:
        attention, mlp, chunks = self.self_attn, self.mlp, self.tricks.overlap_chunks
        assert isinstance(mlp, MLP)
        xs = x_BSD.chunk(chunks, dim=1)
        started = attention.qkv_proj.start_each(map(self.input_layernorm, xs))
        qkvs = [qkv.wait() for qkv in started]
        shards = qkvs[0].shape[1] // xs[0].shape[1]
        o_BSW = attention.attend_projected(_joined(qkvs, shards), table, documents)
        started = [attention.o_proj.start(o) for o in _cut(o_BSW, shards, chunks)]
        streams, inputs = [], []
        for x, projected in zip(xs, started, strict=True):
            streams.append(x + projected.wait())
            inputs.append(mlp.gate_up_proj.start(self.post_attention_layernorm(streams[-1])))
        outputs = []
        try:
            for gate_up in inputs:
                output = mlp.down_proj.start(mlp.swiglu(gate_up.wait()))
                outputs.append(output)
        except BaseException:  # Recomputation stops at the last tensor that backward needs.
            for output in outputs:
                output.wait()
            raise
        chunks_BtD = [x + output.wait() for x, output in zip(streams, outputs, strict=True)]
        return torch.cat(chunks_BtD, dim=1)


def _joined(chunks_BtW: list[Tensor], shards: int) -> Tensor:
    """[B, S, W] from chunks [B, t·shards, W], each the same slice of every shard."""
    return torch.stack([x.unflatten(1, (shards, -1)) for x in chunks_BtW], dim=2).flatten(1, 3)


def _cut(x_BSW: Tensor, shards: int, chunks: int) -> list[Tensor]:
    """The inverse of :func:`_joined`."""
    return [x.flatten(1, 2) for x in x_BSW.unflatten(1, (shards, chunks, -1)).unbind(2)]
