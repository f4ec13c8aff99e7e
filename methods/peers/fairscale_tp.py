"""fairscale's column- and row-parallel linear layers, as Meta's Llama code has them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize
from fairscale.nn.model_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn

from methods.peers.plain import PlainLM, initialized, mean_loss
from odysseus import weights
from odysseus.attention import sdpa
from odysseus.config import RunConfig
from odysseus.data import Batch
from odysseus.mesh import Mesh
from odysseus.method import ATTENTION_SPLIT, MLP_SPLIT

_SPLIT = ATTENTION_SPLIT | MLP_SPLIT


class Trainer:
    whole_samples = True

    def __init__(self, model: PlainLM, mesh: Mesh) -> None:
        self.model, self.mesh = model, mesh

    def forward_backward(self, batch: Batch, tokens: int) -> Tensor:
        loss = mean_loss(self.model(batch.input_ids, batch.position_ids), batch, tokens)
        loss.backward()
        return loss.detach()

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        axis = self.mesh.sequence
        for name, parameter in self.model.named_parameters():
            assert parameter.grad is not None
            cut = next((dim for key, dim in _SPLIT.items() if f".{key}." in name), None)
            if cut is None:
                yield name, parameter.grad
                continue
            parts = [torch.empty_like(parameter.grad) for _ in range(axis.size)]
            dist.all_gather(parts, parameter.grad.contiguous(), group=axis.group)
            yield name, torch.cat(parts, dim=cut)


def build(run: RunConfig, mesh: Mesh) -> Trainer:
    if not initialize.model_parallel_is_initialized():
        initialize.initialize_model_parallel(mesh.sequence.size)

    def linear(width_in: int, width_out: int, name: str) -> nn.Module:
        keep = {"bias": False, "init_method": lambda weight: weight}
        if name in ("o_proj", "down_proj"):
            return RowParallelLinear(width_in, width_out, input_is_parallel=True, **keep)
        return ColumnParallelLinear(width_in, width_out, gather_output=False, **keep)

    model = PlainLM(run.architecture, sdpa, linear)
    whole = dict(initialized(run).named_parameters())
    axis = mesh.sequence
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            (piece,) = weights.pieces(name, run.architecture, _SPLIT, axis.size, axis.rank)
            parameter.copy_(piece.of(whole[name]))
    return Trainer(model, mesh)
