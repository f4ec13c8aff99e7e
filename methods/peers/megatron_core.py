"""Megatron-Core's tensor-parallel layers, embedding and vocabulary-parallel loss.

Its sequence parallelism is optional. As in Megatron-Core's own transformer block, one weight holds
q, k and v, another holds gate and up, and the sequence is the stream's first dimension. The layers
ask CUDA for the current device. Without CUDA a replaced function answers "cpu"; nothing else in
Megatron-Core is changed.

B batch, S tokens, s this rank's tokens (all, if the stream is replicated), D hidden size, F heads
of q, k and v on this rank, h query heads on this rank, K elements per head, c and e the input and
output width of a layer on this rank, v this rank's part of the vocabulary.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about optional packages that are missing
    from megatron.core import ModelParallelConfig, parallel_state
    from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
    from megatron.core.tensor_parallel.layers import (
        ColumnParallelLinear,
        RowParallelLinear,
        VocabParallelEmbedding,
    )

from methods.peers.optimizer import AdamW
from methods.peers.plain import (
    Linear,
    PlainLM,
    cut_block,
    gathered_gradients,
    load_shards,
    rotated,
    select_part,
)
from odysseus.config.architecture import Architecture
from odysseus.config.run import RunConfig
from odysseus.io.text import Batch
from odysseus.model.attention import sdpa
from odysseus.parallel.mesh import Mesh
from odysseus.training.block_trainer import Stream

_CUT_BY_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


class Column(ColumnParallelLinear):
    """Column-parallel linear layer: [s or S, B, D] to [S, B, e]."""

    def forward(self, x_sBD: Tensor) -> Tensor:  # pyrefly: ignore
        return super().forward(x_sBD)[0]


class Row(RowParallelLinear):
    """Row-parallel linear layer: [S, B, c] to [s or S, B, D]."""

    def forward(self, x_SBc: Tensor) -> Tensor:  # pyrefly: ignore
        return super().forward(x_SBc)[0]


class Embedding(VocabParallelEmbedding):
    """Embedding cut by vocabulary: token ids [B, S] to [s or S, B, D]."""

    def forward(self, input_ids: Tensor) -> Tensor:  # pyrefly: ignore
        x = super().forward(input_ids)
        return x if self.reduce_scatter_embeddings else x.transpose(0, 1).contiguous()


class Attention(nn.Module):
    """Attention of this rank's heads, with one weight for q, k and v."""

    def __init__(self, a: Architecture, ranks: int, linear: Linear) -> None:
        super().__init__()
        self.head_dim = a.head_dim
        self.heads = [n // ranks for n in (a.num_attention_heads, *2 * [a.num_key_value_heads])]
        self.qkv_proj = linear(a.hidden_size, a.query_width + 2 * a.key_value_width, "qkv_proj")
        self.o_proj = linear(a.query_width, a.hidden_size, "o_proj")

    def forward(self, x_sBD: Tensor, table: Tensor) -> Tensor:
        packed_BSFK = self.qkv_proj(x_sBD).unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
        q, k, v = packed_BSFK.split(self.heads, dim=2)
        o_BShK = sdpa(rotated(q, table), rotated(k, table), v)
        return self.o_proj(o_BShK.transpose(0, 1).flatten(2))


class MLP(nn.Module):
    """SwiGLU MLP with one weight for gate and up."""

    def __init__(self, a: Architecture, linear: Linear) -> None:
        super().__init__()
        self.gate_up_proj = linear(a.hidden_size, 2 * a.intermediate_size, "gate_up_proj")
        self.down_proj = linear(a.intermediate_size, a.hidden_size, "down_proj")

    def forward(self, x_sBD: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x_sBD).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Trainer:
    """The plain model with Megatron-Core's layers, see :class:`methods.peers.peer.PeerTrainer`."""

    whole_samples = True

    def __init__(self, model: PlainLM, run: RunConfig, mesh: Mesh, sequence_parallel: bool) -> None:
        self.model, self.axis = model, mesh.sequence
        self.optimizer = AdamW(model, run)
        norms = [m for m in model.modules() if isinstance(m, nn.RMSNorm)]
        self.norm_weights = [norm.weight for norm in norms] if sequence_parallel else []

    def forward_backward(self, batch: Batch, tokens: int) -> Tensor:
        logits_SBv = self.model(batch.input_ids, batch.position_ids)
        losses = vocab_parallel_cross_entropy(logits_SBv.float(), batch.labels.T.contiguous())
        loss = losses.sum() / tokens
        loss.backward()
        self._reduce_norm_gradients()
        return loss.detach()

    def blocks_forward_backward(self, stream: Stream) -> Tensor:
        x_sBD = stream.x.transpose(0, 1).contiguous()  # copies nothing for one sample
        y_BsD = self.model(x_sBD, stream.position_ids).transpose(0, 1)
        y_BsD.backward(stream.gradient)
        self._reduce_norm_gradients()
        return y_BsD.detach()

    def _reduce_norm_gradients(self) -> None:
        """Add up the gradients of weights that computed with a shard of the sequence.

        Megatron's trainer does this at the end of a step.
        """
        grads = [p.grad for p in self.norm_weights if p.grad is not None]
        if grads:
            summed = torch.stack(grads)
            dist.all_reduce(summed, group=self.axis.group)
            for grad, total in zip(grads, summed, strict=True):
                grad.copy_(total)

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        return gathered_gradients(self.model, self.axis, _cut)


def tensor_parallel(run: RunConfig, mesh: Mesh, part: str = "model") -> Trainer:
    """Build a trainer whose stream is replicated between blocks."""
    return _build(run, mesh, part, sequence_parallel=False)


def sequence_parallel(run: RunConfig, mesh: Mesh, part: str = "model") -> Trainer:
    """Build a trainer whose stream is cut along the sequence between blocks."""
    return _build(run, mesh, part, sequence_parallel=True)


def _build(run: RunConfig, mesh: Mesh, part: str, sequence_parallel: bool) -> Trainer:
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # as Megatron-Core recommends
    if not torch.cuda.is_available():
        setattr(torch.cuda, "current_device", lambda: "cpu")  # noqa: B010
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(mesh.sequence.size)
    a, axis = run.architecture, mesh.sequence
    config = ModelParallelConfig(
        tensor_model_parallel_size=axis.size,
        sequence_parallel=sequence_parallel,
        use_cpu_initialization=not torch.cuda.is_available(),
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        params_dtype=torch.float32,
    )
    common: dict[str, Any] = {"config": config, "init_method": lambda w: w, "tp_group": axis.group}
    for_rows: dict[str, Any] = common | {"bias": False, "input_is_parallel": True}
    for_rows |= {"skip_bias_add": False}

    def linear(width_in: int, width_out: int, name: str) -> nn.Module:
        if name in ("o_proj", "down_proj"):
            return Row(width_in, width_out, **for_rows)
        return Column(width_in, width_out, bias=False, gather_output=False, **common)

    model = PlainLM(a, lambda: Attention(a, axis.size, linear), lambda: MLP(a, linear))
    model.model.embed_tokens = Embedding(
        a.vocab_size, a.hidden_size, reduce_scatter_embeddings=sequence_parallel, **common
    )
    model.lm_head = linear(a.hidden_size, a.vocab_size, "lm_head")
    select_part(model, part)
    load_shards(model, run, axis, _cut)
    return Trainer(model.to(mesh.device), run, mesh, sequence_parallel)


def _cut(name: str) -> int | None:
    if name in _CUT_BY_VOCABULARY:
        return 0
    return cut_block(name)
