"""The plain model in FSDP2, with a peer's attention over ranks that each hold a shard of tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from methods.peers.optimizer import AdamW
from methods.peers.plain import Attend, PlainLM, initialized, mean_loss, run_blocks
from odysseus.config.run import RunConfig
from odysseus.io.text import Batch
from odysseus.parallel.mesh import Mesh
from odysseus.training.block_trainer import Stream


class Trainer:
    """The plain model in FSDP2, see :class:`methods.peers.peer.PeerTrainer`."""

    whole_samples = False

    def __init__(self, model: PlainLM, run: RunConfig) -> None:
        self.model = model
        self.optimizer = AdamW(model, run, sharded=True)

    def forward_backward(self, batch: Batch, tokens: int) -> Tensor:
        loss = mean_loss(self.model(batch.input_ids, batch.position_ids), batch, tokens)
        loss.backward()
        return loss.detach()

    def blocks_forward_backward(self, stream: Stream) -> Tensor:
        return run_blocks(self.model, stream)

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            gradient = parameter.grad
            assert isinstance(gradient, DTensor)
            yield name, gradient.full_tensor()


def sharded(run: RunConfig, mesh: Mesh, part: str, attend: Attend) -> Trainer:
    """Build the trainer of the plain model with this attention and one FSDP unit per block.

    The root unit has the other weights; it is empty if the model is its blocks alone.
    """
    model = initialized(run, attend, part)
    precision = MixedPrecisionPolicy(param_dtype=run.compute_dtype, reduce_dtype=run.reduce_dtype)
    for block in model.model.layers:
        fully_shard(block, mesh=mesh.full_mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh.full_mesh, mp_policy=precision)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # sum over ranks, as with the loss
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(dist.get_backend() != "fake")
    return Trainer(model, run)
