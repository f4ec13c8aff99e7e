"""The MLP of a block: SwiGLU. S tokens, D width, I intermediate width."""

from __future__ import annotations

from torch import Tensor, nn

from odysseus.config.architecture import Architecture
from odysseus.model.kernels import Kernels
from odysseus.model.layers import Linear, Project, local


class MLP(nn.Module):
    """SwiGLU. One matmul makes gate and up: `gate_up_proj` has gate_proj's rows, then up_proj's.

    Args:
        shards: Ranks over which the intermediate width is cut.
        width: Whole intermediate width; 0 is the architecture's.
    """

    def __init__(
        self,
        architecture: Architecture,
        kernels: Kernels,
        *,
        shards: int = 1,
        column: Project = local,
        row: Project = local,
        width: int = 0,
    ) -> None:
        super().__init__()
        self.swiglu = kernels.swiglu
        hidden, width = architecture.hidden_size, width or architecture.intermediate_size
        self.gate_up_proj = Linear(hidden, 2 * width // shards, architecture.mlp_bias, column)
        self.down_proj = Linear(width // shards, hidden, architecture.mlp_bias, row)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down_proj(self.swiglu(self.gate_up_proj(x_BSD)))
