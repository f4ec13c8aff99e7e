"""torchtitan's Llama 3 with its own plan: tensor and sequence parallelism, vocabulary-cut logits.

The data-parallel degree is 1: FSDP2 only casts weights to the compute dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torchtitan.components.loss import cross_entropy_loss
from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed import ParallelDims, parallel_dims
from torchtitan.distributed.utils import get_spmd_context, set_spmd_backend
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.common.config_utils import make_ffn_config, make_gqa_config
from torchtitan.models.llama3 import Llama3Model, Llama3StateDictAdapter, parallelize_llama
from torchtitan.models.llama3.model import Llama3TransformerBlock
from torchtitan.models.llama3.sharding import set_llama3_sharding_config

from methods.peers.optimizer import AdamW
from methods.peers.plain import initialized
from odysseus.config.run import RunConfig
from odysseus.io.text import Batch
from odysseus.parallel.mesh import Mesh
from odysseus.training.block_trainer import Stream


class Trainer:
    """torchtitan's model on one rank, see :class:`methods.peers.peer.PeerTrainer`."""

    whole_samples = True

    def __init__(
        self, model: Llama3Model, config: Llama3Model.Config, dims: ParallelDims, run: RunConfig
    ) -> None:
        self.model: nn.Module = model
        self.optimizer = AdamW(model, run, sharded=True)
        self.architecture = run.architecture
        self.adapter = Llama3StateDictAdapter(config, None)
        self.context = get_spmd_context(parallel_dims=dims)
        self.device_mesh = dims.get_mesh("tp")

    def forward_backward(self, batch: Batch, tokens: int) -> Tensor:
        with self.context():
            logits_BSv = self.model(batch.input_ids)
            vocabulary = self.architecture.vocab_size
            sums = cross_entropy_loss(logits_BSv, batch.labels, global_vocab_size=vocabulary)
            loss = sums / tokens
            loss.backward()
        return loss.detach()

    def blocks_forward_backward(self, stream: Stream) -> Tensor:
        with self.context():
            x_BSD = DTensor.from_local(stream.x, self.device_mesh, [Shard(1)], run_check=False)
            y_BsD = self.model(x_BSD).to_local()
            y_BsD.backward(stream.gradient)
        return y_BsD.detach()

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            gradient = parameter.grad
            assert isinstance(gradient, DTensor)
            yield from self.adapter.to_hf(self._unpacked(name, gradient.full_tensor())).items()

    def _unpacked(self, name: str, gradient: Tensor) -> dict[str, Tensor]:
        """Split a packed gradient into those of q, k and v; torchtitan packs them per kv head."""
        if ".wqkv." not in name:
            return {name: gradient}
        a = self.architecture
        groups = a.num_attention_heads // a.num_key_value_heads
        packed = gradient.view(a.num_key_value_heads, groups + 2, a.head_dim, -1)
        parts = zip(("wq", "wk", "wv"), packed.split([groups, 1, 1], dim=1), strict=True)
        return {name.replace("wqkv", part): x.flatten(0, 2) for part, x in parts}


def tensor_and_sequence_parallel(run: RunConfig, mesh: Mesh, part: str = "model") -> Trainer:
    """Build the trainer of torchtitan's Llama 3."""
    if mesh.device.type == "cpu":
        parallel_dims.device_type = "cpu"  # torchtitan takes CUDA if it finds no accelerator
    ranks = mesh.sequence.size
    backend = "partial_dtensor"  # the default, spmd_types, needs an FSDP2 later than torch 2.13's
    set_spmd_backend(backend)
    parallelism = ParallelismConfig(
        data_parallel_shard_degree=1, tensor_parallel_degree=ranks, spmd_backend=backend
    )
    dims = ParallelDims.from_config(parallelism, ranks)
    names: dict[str, Any] = {"fp32": "float32", "bf16": "bfloat16"}
    config = _config(run)
    set_llama3_sharding_config(config, enable_sp=True)
    model: Any = Llama3Model(config)
    if part == "blocks":  # as in torchtitan's middle pipeline stages
        model.tok_embeddings = model.norm = model.lm_head = None
    whole = dict(initialized(run, part=part).state_dict())
    model.load_state_dict(Llama3StateDictAdapter(config, None).from_hf(whole))
    model.to(mesh.device)
    with get_spmd_context(parallel_dims=dims)():
        parallelize_llama(
            model,
            parallel_dims=dims,
            training=TrainingConfig(mixed_precision_param=names[run.dtype]),
            parallelism=parallelism,
            compile_config=CompileConfig(enable=False),
            ac_config=None,
            dump_folder="",
        )
    return Trainer(model, config, dims, run)


def _config(run: RunConfig) -> Llama3Model.Config:
    a = run.architecture
    init: dict[str, Any] = {"weight": torch.nn.init.zeros_}
    norm = RMSNorm.Config(normalized_shape=a.hidden_size, eps=a.rms_norm_eps, param_init=init)
    rope = ComplexRoPE.Config(
        dim=a.head_dim,
        max_seq_len=run.seq_len,
        theta=a.rope_theta,
        scaling="none" if a.rope_factor == 1.0 else "llama",
        scaling_factor=a.rope_factor,
        low_freq_factor=a.rope_low_freq_factor,
        high_freq_factor=a.rope_high_freq_factor,
        original_max_position_embeddings=a.rope_original_max_position_embeddings,
    )

    def block() -> Llama3TransformerBlock.Config:
        return Llama3TransformerBlock.Config(
            attention_norm=replace(norm),
            ffn_norm=replace(norm),
            attention=make_gqa_config(
                dim=a.hidden_size,
                n_heads=a.num_attention_heads,
                n_kv_heads=a.num_key_value_heads,
                head_dim=a.head_dim,
                wqkv_param_init=init,
                wo_param_init=init,
                inner_attention=ScaledDotProductAttention.Config(),
                rope=rope,
                fuse_qkv=True,
            ),
            feed_forward=make_ffn_config(
                dim=a.hidden_size,
                hidden_dim=a.intermediate_size,
                w1_param_init=init,
                w2w3_param_init=init,
            ),
        )

    return Llama3Model.Config(
        dim=a.hidden_size,
        vocab_size=a.vocab_size,
        tok_embeddings=Embedding.Config(
            num_embeddings=a.vocab_size, embedding_dim=a.hidden_size, param_init=init
        ),
        norm=norm,
        lm_head=Linear.Config(
            in_features=a.hidden_size, out_features=a.vocab_size, param_init=init
        ),
        layers=[block() for _ in range(a.num_hidden_layers)],
    )
