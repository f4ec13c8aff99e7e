"""Inputs for comparing blocks without the rest of the model: equal hidden states and gradients.

B batch, S tokens of the sequence, s tokens of this rank, D width. The method decides whether a
stream holds s or S tokens.
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
    """The streams of both implementations on one rank, drawn from the run's seed.

    A method that holds all tokens on every rank keeps gradients between blocks as partial sums,
    while its peers hold the complete sum. Both implementations get the same complete tensors and
    return the same complete tensors. The conversion before and after the blocks is neither timed
    nor metered.

    Attributes:
        own: Stream of this project's blocks; its gradient may be a partial sum.
        peer: Stream of the peer's blocks; its gradient is complete.
    """

    def __init__(self, run: RunConfig, method: Method, mesh: Mesh) -> None:
        self.run, self.method, self.mesh = run, method, mesh
        at = shard_of(run.ring_order, run.seq_len, *run.token_axes, mesh.shard)
        self.tokens = torch.from_numpy(at)
        generator = torch.Generator().manual_seed(run.seed)
        self.shape = run.micro_batch_size, run.seq_len, run.architecture.hidden_size
        # The standard deviation of initial embeddings, so that blocks change more than last digits.
        drawn = torch.randn(2, *self.shape, generator=generator).mul_(0.02)
        x_BsD, gradient_BsD = drawn[:, :, self.tokens].to(mesh.device, run.compute_dtype)
        positions = method.positions(self.tokens[None].to(mesh.device), mesh)
        x, whole = (method.enter(t_BsD, mesh) for t_BsD in (x_BsD, gradient_BsD))
        end = x.clone().requires_grad_()
        (part,) = torch.autograd.grad(method.leave(end, mesh), end, gradient_BsD)
        self.own = Stream(x.clone().requires_grad_(), positions, part)
        self.peer = Stream(x.clone().requires_grad_(), positions, whole)

    def output(self, stream: Tensor) -> Tensor:
        """The complete output [B, S, D] of either implementation's blocks, fp32, on every rank."""
        return self._gathered(self.method.leave(stream, self.mesh))

    def input_gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients of the blocks' input, this project's and the peer's: [B, S, D] fp32 on every
        rank."""
        own, peer = self.own.x.grad, self.peer.x.grad
        assert own is not None
        assert peer is not None
        start_BsD = self.method.leave(own, self.mesh).clone().requires_grad_()
        (sum_BsD,) = torch.autograd.grad(self.method.enter(start_BsD, self.mesh), start_BsD, own)
        return self._gathered(sum_BsD), self.output(peer)

    def _gathered(self, shard_BsD: Tensor) -> Tensor:
        whole_BSD = torch.zeros(self.shape, device=self.mesh.device)
        whole_BSD[:, self.tokens.to(self.mesh.device)] = shard_BsD.detach().float()
        all_reduce_plain(whole_BSD, self.mesh.world)
        return whole_BSD
