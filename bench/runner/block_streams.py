"""What blocks alone are compared on: the same hidden states and the same gradient from above.

B batch, S tokens of the sequence, s this rank's, D width. A stream's own tokens, s or S, are its
method's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.method import Method
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.ring_order import shard_of
from odysseus.parallel.transfers import all_reduce_plain
from odysseus.training.block_trainer import Stream


class Streams:
    """Both sides' streams on one rank, drawn from the run's seed, and what they are parts of.

    A method that has all tokens on every rank keeps gradients between blocks as parts of a sum,
    its peers have the sum: both get and give the same whole, the way in and out of the blocks
    apart, which is neither timed nor metered.

    Attributes:
        ours: Gradients are parts.
        peers: Gradients are whole.
    """

    def __init__(self, run: RunConfig, method: Method, mesh: Mesh) -> None:
        self.run, self.method, self.mesh = run, method, mesh
        sizes = run.ring_parallel_size, run.sequence_size
        self.tokens = torch.from_numpy(shard_of(run.ring_order, run.seq_len, *sizes, mesh.shard))
        generator = torch.Generator().manual_seed(run.seed)
        self.shape = run.micro_batch_size, run.seq_len, run.architecture.hidden_size
        # As wide as embeddings are at first, so that blocks change more than the last digits.
        drawn = torch.randn(2, *self.shape, generator=generator).mul_(0.02)
        x_BsD, gradient_BsD = drawn[:, :, self.tokens].to(mesh.device, run.compute_dtype)
        positions = method.positions(self.tokens[None].to(mesh.device), mesh)
        x, whole = (method.enter(t_BsD, mesh) for t_BsD in (x_BsD, gradient_BsD))
        end = x.clone().requires_grad_()
        (part,) = torch.autograd.grad(method.leave(end, mesh), end, gradient_BsD)
        self.ours = Stream(x.clone().requires_grad_(), positions, part)
        self.peers = Stream(x.clone().requires_grad_(), positions, whole)

    def output(self, stream: Tensor) -> Tensor:
        """[B, S, D] fp32, on every rank, of what comes out of either's blocks."""
        return self._gathered(self.method.leave(stream, self.mesh))

    def input_gradients(self) -> tuple[Tensor, Tensor]:
        """Ours and the peer's, of what went into the blocks; [B, S, D] fp32 on every rank."""
        ours, peers = self.ours.x.grad, self.peers.x.grad
        assert ours is not None
        assert peers is not None
        start_BsD = self.method.leave(ours, self.mesh).clone().requires_grad_()
        (sum_BsD,) = torch.autograd.grad(self.method.enter(start_BsD, self.mesh), start_BsD, ours)
        return self._gathered(sum_BsD), self.output(peers)

    def _gathered(self, shard_BsD: Tensor) -> Tensor:
        whole_BSD = torch.zeros(self.shape, device=self.mesh.device)
        whole_BSD[:, self.tokens.to(self.mesh.device)] = shard_BsD.detach().float()
        all_reduce_plain(whole_BSD, self.mesh.world)
        return whole_BSD
