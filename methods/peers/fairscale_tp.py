"""fairscale's column- and row-parallel linear layers, used as in Meta's Llama code."""

from __future__ import annotations

from collections.abc import Iterator

from fairscale.nn.model_parallel import initialize
from fairscale.nn.model_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn

from methods.peers.optimizer import AdamW
from methods.peers.plain import (
    PlainLM,
    cut_block,
    gathered_gradients,
    load_shards,
    mean_loss,
    plain_model,
    run_blocks,
    select_part,
)
from odysseus.config.run import RunConfig
from odysseus.io.text import Batch
from odysseus.model.attention import sdpa
from odysseus.parallel.mesh import Mesh
from odysseus.training.block_trainer import Stream


class Trainer:
    """The plain model with fairscale's layers, see :class:`methods.peers.peer.PeerTrainer`."""

    whole_samples = True

    def __init__(self, model: PlainLM, run: RunConfig, mesh: Mesh) -> None:
        self.model, self.mesh = model, mesh
        self.optimizer = AdamW(model, run)

    def forward_backward(self, batch: Batch, tokens: int) -> Tensor:
        loss = mean_loss(self.model(batch.input_ids, batch.position_ids), batch, tokens)
        loss.backward()
        return loss.detach()

    def blocks_forward_backward(self, stream: Stream) -> Tensor:
        return run_blocks(self.model, stream)

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        return gathered_gradients(self.model, self.mesh.sequence, cut_block)


def build(run: RunConfig, mesh: Mesh, part: str = "model") -> Trainer:
    """Build the trainer of fairscale's tensor parallelism."""
    if not initialize.model_parallel_is_initialized():
        initialize.initialize_model_parallel(mesh.sequence.size)

    def linear(width_in: int, width_out: int, name: str) -> nn.Module:
        options = {"bias": False, "init_method": lambda weight: weight}
        if name in ("o_proj", "down_proj"):
            return RowParallelLinear(width_in, width_out, input_is_parallel=True, **options)
        return ColumnParallelLinear(width_in, width_out, gather_output=False, **options)

    model = select_part(plain_model(run.architecture, sdpa, linear), part)
    load_shards(model, run, mesh.sequence, cut_block)
    return Trainer(model.to(mesh.device), run, mesh)
