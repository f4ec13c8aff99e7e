"""DeepSpeed: its attention modules for sequence parallelism, its ZeRO-3 for the weights.

B batch, S tokens, s this rank's tokens, D hidden size, H query heads, G kv heads, F either of
these, K elements per head, T tokens of one tile.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers.integrations.sdpa_attention import sdpa_attention_forward

if not torch.cuda.is_available():  # DeepSpeed reads these at import
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_BUILD_OPS", "0")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about optional packages that are missing
    import deepspeed
    from deepspeed.runtime.sequence_parallel import ulysses_sp
    from deepspeed.sequence.layer import DistributedAttention
    from deepspeed.utils import safe_get_full_grad

    # Its all-reduce in shared memory is for inference, and is compiled when ranks first meet, for
    # minutes on a small machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

from methods.peers.plain import (
    MLP,
    Attention,
    PlainLM,
    load_weights,
    mean_loss,
    run_blocks,
    select_part,
)
from odysseus.config.run import RunConfig
from odysseus.io.text import Batch
from odysseus.model.attention import sdpa
from odysseus.parallel.mesh import Mesh
from odysseus.training.block_trainer import Stream


class Optimizer:
    """ZeRO-3 around PyTorch's fused AdamW."""

    def __init__(self, zero: Any) -> None:
        self.zero = zero

    def step(self) -> None:
        self.zero.step()

    def zero_grad(self) -> None:
        self.zero.zero_grad(set_to_none=True)

    def state_tensors(self) -> Iterator[Tensor]:
        """Yield the shards, their fp32 copies, the buffers and AdamW's states."""
        shards = [p.ds_tensor for group in self.zero.fp16_groups for p in group]
        states = list(self.zero.optimizer.state.values())
        for leaf in tree_leaves([shards, states, vars(self.zero)]):
            if isinstance(leaf, Tensor):
                yield leaf


class Trainer:
    """A DeepSpeed engine around the plain model, see :class:`methods.peers.peer.PeerTrainer`."""

    whole_samples = False

    def __init__(self, model: PlainLM, run: RunConfig, mesh: Mesh, part: str) -> None:
        load_weights(select_part(model, part), run)
        adamw = torch.optim.AdamW(model.parameters(), lr=run.optimizer.learning_rate, fused=True)
        hidden = run.architecture.hidden_size
        zero = {  # the sizes that Transformers' "auto" sets; the defaults are for larger models
            "stage": 3,
            "reduce_bucket_size": hidden**2,
            "stage3_prefetch_bucket_size": int(0.9 * hidden**2),
            "stage3_param_persistence_threshold": 10 * hidden,
        }
        config = {
            "train_micro_batch_size_per_gpu": run.micro_batch_size,
            "sequence_parallel_size": mesh.sequence.size,
            "zero_optimization": zero,
            "gradient_clipping": 0.0,  # the default clips
            "bf16": {"enabled": run.dtype == "bf16"},
            "seq_parallel_communication_data_type": run.seq_parallel_communication_data_type,
        }
        # The forward of the whole model returns the loss, that of the blocks does not.
        forward_model: nn.Module = model.model if part == "blocks" else model
        self.engine, *_ = deepspeed.initialize(
            model=forward_model, optimizer=adamw, config=config, mesh_param=(1, mesh.sequence.size)
        )
        # DeepSpeed uses deprecated names.
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
        self.model, self.optimizer = model, Optimizer(self.engine.optimizer)
        self.ranks = mesh.world.size
        self.gradient_scale = self.ranks if part == "blocks" else 1

    def forward_backward(self, batch: Batch, tokens: int) -> Tensor:
        # DeepSpeed averages the ranks' gradients; this project's gradient is their sum.
        loss = self.engine(batch, tokens / self.ranks)
        self.engine.backward(loss)
        return loss.detach() / self.ranks

    def blocks_forward_backward(self, stream: Stream) -> Tensor:
        return run_blocks(self.engine, stream)

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            gradient = safe_get_full_grad(parameter)
            assert gradient is not None
            yield name, gradient * self.gradient_scale


class Ulysses(PlainLM):
    """DeepSpeed-Ulysses in its first published form: DistributedAttention."""

    def __init__(self, run: RunConfig, mesh: Mesh) -> None:
        a = run.architecture
        local: Any = sdpa
        group: Any = mesh.sequence.group
        exchanged = DistributedAttention(local, group, scatter_idx=2, gather_idx=1)
        attend = partial(exchanged, batch_dim_idx=0)
        super().__init__(a, lambda: Attention(a, attend), lambda: MLP(a))

    def forward(self, batch: Batch, tokens: float) -> Tensor:  # pyrefly: ignore
        return mean_loss(super().forward(batch.input_ids, batch.position_ids), batch, tokens)


class TiledMLP(MLP):
    """DeepSpeed's TiledMLP, with the number of tiles from its tutorial."""

    def forward(self, x_BSD: Tensor) -> Tensor:
        tiles = math.ceil(x_BSD.shape[1] / x_BSD.shape[2])
        return ulysses_sp.TiledMLP.apply(MLP.forward, self, x_BSD, tiles, list(self.parameters()))


class ALST(PlainLM):
    """Arctic Long Sequence Training: UlyssesSPAttentionHF, TiledMLP and TiledFusedLogitsLoss."""

    def __init__(self, run: RunConfig, mesh: Mesh) -> None:
        self.tile_bytes = run.tiled_loss_bytes
        a, axis = run.architecture, mesh.sequence
        group: Any = axis.group
        exchanged = ulysses_sp.UlyssesSPAttentionHF(
            sdpa_attention_forward,
            batch_size=run.micro_batch_size,
            attn_head_count=a.num_attention_heads,
            attn_head_size=a.head_dim,
            kv_head_count=a.num_key_value_heads,
            num_hidden_layers=a.num_hidden_layers,
            process_group=group,
            seq_length_is_variable=True,
        )
        groups = a.num_attention_heads // a.num_key_value_heads
        layer: Any = SimpleNamespace(training=True, is_causal=True, num_key_value_groups=groups)
        tokens = run.local_tokens // run.micro_batch_size
        positions_1s = torch.arange(tokens, device=mesh.device)[None] + axis.rank * tokens

        def attend(*heads_BsFK: Tensor) -> Tensor:
            qkv = (x_BsFK.transpose(1, 2) for x_BsFK in heads_BsFK)
            return exchanged(layer, *qkv, None, position_ids=positions_1s)[0]

        super().__init__(a, lambda: Attention(a, attend), lambda: TiledMLP(a))

    def forward(self, batch: Batch, tokens: float) -> Tensor:  # pyrefly: ignore
        def loss(self: ALST, x_TD: Tensor, labels_T: Tensor) -> Tensor:
            return F.cross_entropy(self.lm_head(x_TD).float(), labels_T, reduction="sum") / tokens

        x_BsD = self.model(batch.input_ids, batch.position_ids)
        logits_bytes = 4 * batch.labels.numel() * self.architecture.vocab_size
        tiles = math.ceil(logits_bytes / self.tile_bytes)
        head = [self.lm_head.weight]
        return ulysses_sp.TiledFusedLogitsLoss.apply(
            loss, self, x_BsD, batch.labels, None, tiles, head, "sum"
        )


def ulysses(run: RunConfig, mesh: Mesh, part: str = "model") -> Trainer:
    """Build the trainer of DeepSpeed-Ulysses with ZeRO-3."""
    return Trainer(Ulysses(run, mesh), run, mesh, part)


def alst(run: RunConfig, mesh: Mesh, part: str = "model") -> Trainer:
    """Build the trainer of Arctic Long Sequence Training."""
    deepspeed.init_distributed(dist.get_backend(), verbose=False)  # its attention needs this
    return Trainer(ALST(run, mesh), run, mesh, part)
