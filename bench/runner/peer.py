"""A peer's model on this rank, with the samples that it reads: it trains, alone or under meters."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from bench.meters.memory import KINDS, MemoryMeter
from bench.meters.traffic import PURPOSES
from methods.peers.peer import PeerTrainer
from methods.peers.registry import PEERS
from odysseus.config.run import RunConfig
from odysseus.io.text import Batch, Samples
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.transfers import all_reduce_plain
from odysseus.training.trainer import Trainer

ONLY_NATIVE = {
    *(f"comm_bytes_{purpose}" for purpose in PURPOSES),
    *(f"peak_memory_{kind}_bytes" for kind in KINDS),
    *("peak_activation_bytes", "peak_host_bytes"),
}
"""Columns by purpose or kind, which are unknown for a peer's collectives and tensors."""


class Peer:
    """A peer's model, and the samples that it reads."""

    part = "model"

    def __init__(self, run: RunConfig, peer: str, mesh: Mesh) -> None:
        self.run, self.mesh = run, mesh
        self.trainer: PeerTrainer = PEERS[peer].load()(run, self.mesh, self.part)

    @cached_property
    def samples(self) -> Samples:
        run, mesh = self.run, self.mesh
        whole = replace(run, world_size=run.data_parallel_size, sequence_parallel_size=1)
        reads, shard = (whole, 0) if self.trainer.whole_samples else (run, mesh.shard)
        return Samples(reads, mesh.replica, shard, mesh.device)

    def batch(self, step: int) -> Any:
        """The peer's micro batch in a step."""
        (batch,) = self.samples.step(step)
        return batch

    def results(self, own: Trainer, batches: list[Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Step-0 outputs of both implementations by name; weight gradients are compared
        elsewhere."""
        vocabulary = self.run.architecture.vocab_size
        own_batches = [spread(batch, vocabulary) for batch in batches]
        peer_batch = spread(self.batch(0), vocabulary)
        return {"loss": (own.forward_backward(own_batches), self.forward_backward(peer_batch))}

    def forward_backward(self, batch: Any) -> Tensor:
        """Run forward and backward. Return the step's loss."""
        loss = self.trainer.forward_backward(batch, self.run.tokens_per_step)
        if not self.trainer.whole_samples:
            all_reduce_plain(loss, self.mesh.world)
        return loss

    def step(self, index: int) -> None:
        self.train([self.batch(index)])

    def train(self, batches: list[Any]) -> Tensor:
        """Run forward, backward and the optimizer. Return the step's loss."""
        (batch,) = batches
        loss = self.forward_backward(batch)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        return loss

    def peak_bytes(self) -> int:
        """Peak bytes of live tensors in one step, parameters and optimizer states included."""
        return self.memory_of_step([self.batch(2)]).peak().bytes

    def memory_of_step(
        self,
        batches: list[Any],
        meter: MemoryMeter | None = None,
        beside: AbstractContextManager[Any] | None = None,
    ) -> MemoryMeter:
        """Train one step under a memory meter that also counts the tensors allocated before it.

        Args:
            meter: By default a new one.
            beside: Another context for the same step, entered after the meter.
        """
        (batch,) = batches
        meter = meter or MemoryMeter()
        for tensors, kind in (
            (self.trainer.optimizer.state_tensors(), "optimizer"),
            (self.trainer.model.parameters(), "parameters"),
            (batch.tensors, "activations"),
        ):
            local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
            meter.watch(local, kind)
        with meter, beside or nullcontext():
            self.train(batches)
        return meter


def spread(batch: Batch, vocabulary: int) -> Batch:
    """The batch with its tokens spread evenly over the vocabulary, independent of the rank.

    A CPU adds the gradients of all occurrences of a token to its embedding one by one in bf16. In
    text few tokens occur many times: with 2,048 tokens on one rank the result is 6.6e-2 off fp32.
    """
    input_ids = (batch.input_ids + 61 * batch.position_ids) % vocabulary
    return replace(batch, input_ids=input_ids)
