"""PyTorch's own tensor parallelism (``parallelize_module``), with torchtitan's plan for Llama."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from methods.peers.optimizer import AdamW
from methods.peers.plain import PlainLM, initialized, mean_loss, run_blocks
from odysseus.config.run import RunConfig
from odysseus.io.text import Batch
from odysseus.parallel.mesh import Mesh
from odysseus.training.block_trainer import Stream


class Trainer:
    """The plain model in DTensors, see :class:`methods.peers.peer.PeerTrainer`."""

    whole_samples = True

    def __init__(self, model: PlainLM, run: RunConfig, cuts_logits: bool = False) -> None:
        self.model, self.cuts_logits = model, cuts_logits
        self.optimizer = AdamW(model, run)

    def forward_backward(self, batch: Batch, tokens: int) -> Tensor:
        logits = self.model(batch.input_ids, batch.position_ids)
        if not self.cuts_logits:
            loss = mean_loss(logits, batch, tokens)
            loss.backward()
            return loss.detach()
        with loss_parallel():
            loss = mean_loss(logits, batch, tokens)
            loss.backward()
        assert isinstance(loss, DTensor)
        return loss.full_tensor().detach()

    def blocks_forward_backward(self, stream: Stream) -> Tensor:
        return run_blocks(self.model, stream)

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            gradient = parameter.grad
            assert gradient is not None
            yield name, gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def tensor_parallel(run: RunConfig, mesh: Mesh, part: str = "model") -> Trainer:
    """Build a trainer whose stream is replicated between blocks."""
    columns, rows = ColwiseParallel, RowwiseParallel
    model, device_mesh = initialized(run, part=part).to(mesh.device), _device_mesh(mesh)
    outside_blocks: dict[str, ParallelStyle] = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        "lm_head": ColwiseParallel(output_layouts=Replicate()),
    }
    if part == "model":
        parallelize_module(model, device_mesh, outside_blocks)
    plan: dict[str, ParallelStyle] = {
        **{f"self_attn.{name}_proj": columns() for name in "qkv"},
        **{f"mlp.{name}_proj": columns() for name in ("gate", "up")},
        **{"self_attn.o_proj": rows(), "mlp.down_proj": rows()},
    }
    for block in model.model.layers:
        parallelize_module(block, device_mesh, plan)
    return Trainer(model, run)


def sequence_parallel(
    run: RunConfig, mesh: Mesh, part: str = "model", cuts_logits: bool = False
) -> Trainer:
    """Build a trainer whose stream is cut along the sequence between blocks."""
    model, device_mesh = initialized(run, part=part).to(mesh.device), _device_mesh(mesh)
    head = ColwiseParallel(
        input_layouts=Shard(1),
        output_layouts=Shard(-1) if cuts_logits else Replicate(),
        use_local_output=not cuts_logits,
    )
    outside_blocks: dict[str, ParallelStyle] = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "model.norm": SequenceParallel(),
        "lm_head": head,
    }
    if part == "model":
        parallelize_module(model, device_mesh, outside_blocks)
    gathered = PrepareModuleInput(
        input_layouts=(Shard(1), None), desired_input_layouts=(Replicate(), None)
    )
    plan: dict[str, ParallelStyle] = {
        "input_layernorm": SequenceParallel(),
        "self_attn": gathered,
        **{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"},
        "self_attn.o_proj": RowwiseParallel(output_layouts=Shard(1)),
        "post_attention_layernorm": SequenceParallel(),
        "mlp": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        **{f"mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")},
        "mlp.down_proj": RowwiseParallel(output_layouts=Shard(1)),
    }
    for block in model.model.layers:
        parallelize_module(block, device_mesh, plan)
    return Trainer(model, run, cuts_logits)


def sequence_and_loss_parallel(run: RunConfig, mesh: Mesh, part: str = "model") -> Trainer:
    """Build the trainer of :func:`sequence_parallel` with the logits cut by vocabulary."""
    return sequence_parallel(run, mesh, part, cuts_logits=True)


def _device_mesh(mesh: Mesh) -> DeviceMesh:
    return DeviceMesh.from_group(mesh.sequence.group, mesh.device.type)
