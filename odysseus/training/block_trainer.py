"""Training of the blocks alone: hidden states in and out, no embedding, last norm, head or loss.

B batch, S tokens of a method's stream, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import HostMemory
from odysseus.method import Method
from odysseus.model.decoder import Decoder
from odysseus.model.kernels import Kernels
from odysseus.parallel import zero
from odysseus.parallel.mesh import Mesh
from odysseus.training.build import build_unsharded, shard_and_compile
from odysseus.training.trainer import Trainer


@dataclass(frozen=True)
class Stream:
    """Inputs of one rank's blocks, forward and backward.

    Attributes:
        x: Input of the first block, [B, S, D] in the compute dtype, a leaf of autograd.
        position_ids: Position ids of the S' tokens that attention sees, [1, S'] int64.
        gradient: Gradient of the last block's output, with the shape and dtype of x.
    """

    x: Tensor
    position_ids: Tensor
    gradient: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.x, self.position_ids, self.gradient


class BlockStack(nn.Module):
    """A decoder's blocks, with the parameter names that they have in the decoder."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.model = decoder
        # Only the blocks have weights here.
        decoder.embed_tokens = decoder.norm = nn.Identity()  # pyrefly: ignore

    def forward(self, x_BSD: Tensor, position_ids: Tensor) -> Tensor:
        return self.model.through_blocks(x_BSD, position_ids)


def build_blocks(
    run: RunConfig, method: Method, mesh: Mesh, host: HostMemory, kernels: Kernels
) -> BlockStack:
    """Build this rank's shards of a run's blocks, on the meta device, without values.

    Arguments are those of :func:`odysseus.training.build.build_model`.
    """
    stack = BlockStack(build_unsharded(run, method, mesh, host, kernels).model)
    shard_and_compile(stack, zero.Units(None, stack.model.layers, []), run, method, mesh)
    return stack


class BlockTrainer(Trainer):
    """Trains the blocks alone, given the gradient of their output."""

    def __init__(self, run: RunConfig, method: Method, mesh: Mesh) -> None:
        super().__init__(run, method, mesh, build=build_blocks)

    def step(self, batches: list[Stream]) -> None:  # pyrefly: ignore
        """Run forward, backward and update on one stream."""
        self.forward_backward(batches)
        self.optimizer.update()

    def forward_backward(self, batches: list[Stream]) -> Tensor:  # pyrefly: ignore
        """Compute gradients of weights and of the stream's input; return its output [B, S, D]."""
        (stream,) = batches
        stream.x.grad = None
        y_BSD = self.model(stream.x, stream.position_ids)
        y_BSD.backward(stream.gradient)
        return y_BSD.detach()
