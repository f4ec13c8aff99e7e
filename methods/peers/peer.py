"""Interface of peers: what is known before import, and the trainer that each builds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor, nn

from odysseus.config.parallelism import Parallelism
from odysseus.config.run import RunConfig
from odysseus.io.text import Batch
from odysseus.parallel.mesh import Mesh
from odysseus.training.block_trainer import Stream


class Optimizer(Protocol):
    """Optimizer of a peer's weights."""

    def step(self) -> None: ...

    def zero_grad(self) -> None: ...

    def state_tensors(self) -> Iterable[Tensor]:
        """Return the tensors that stay from step to step, for the memory meter.

        The parameters may be among them.
        """
        ...


class PeerTrainer(Protocol):
    """A peer's model, or its blocks alone, on one rank.

    Attributes:
        model: Module whose parameters are the weights, or this rank's shards of them.
        optimizer: Updates the parameters.
        whole_samples: Whether each rank reads whole samples instead of its shard of them.
    """

    model: nn.Module
    optimizer: Optimizer
    whole_samples: bool

    def forward_backward(self, batch: Batch, tokens: int) -> Tensor:
        """Compute the gradients of one step and return this rank's loss.

        If ranks read shards, the step's loss is the sum of what they return. If they read whole
        samples, each rank returns the step's loss.
        """
        ...

    def blocks_forward_backward(self, stream: Stream) -> Tensor:
        """Compute the gradients of one step of the blocks alone, including that of ``stream.x``.

        Return the last block's output, in the layout of ``stream.x``.
        """
        ...

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the gradient of each whole weight, with its Hugging Face name. A collective."""
        ...


class Build(Protocol):
    """Function that builds a peer's trainer."""

    def __call__(self, run: RunConfig, mesh: Mesh, part: str = "model") -> PeerTrainer:
        """Return a peer's trainer of a part of the run's model, see :data:`PARTS`."""
        ...


@dataclass(frozen=True)
class Peer:
    """Facts about a peer that are known before it is imported.

    Attributes:
        method: This project's method that the peer also implements.
        package: Packages that the peer imports, separated by spaces.
        build: ``module:function`` in this package, the peer's :class:`Build`.
        blocks: Differences between the work of its blocks and of this project's, in words.
        outside_blocks: Differences in embedding, head and loss, in words.
        overrides: Options of this project's run that make its work equal to the peer's.
        dtypes: Dtypes in which the peer can compute.
        install: Arguments of ``pip install`` for its packages.
        ring: Whether this project's run uses the ring axis instead of the sequence axis.
        cuts: Sizes of the model that the peer cuts over the ranks, beside those of its method.
        least_ranks: Smallest world size.
        devices: Kinds of devices on which the peer can compute.
        gpu_package: Package that the peer also needs on GPUs.
        first_steps: Steps before the first that sends what all later ones send.
    """

    method: str
    package: str
    build: str
    blocks: str
    outside_blocks: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    install: str = "-r requirements-peers.txt"
    ring: bool = False
    cuts: tuple[str, ...] = ()
    least_ranks: int = 1
    devices: tuple[str, ...] = ("cpu", "cuda")
    gpu_package: str = ""
    first_steps: int = 1

    def matching_run(self, run: RunConfig) -> RunConfig:
        """Return the run of this project's method that does the same work as the peer."""
        changes: dict[str, Any] = {**self.overrides, **self.axes(run)}
        return replace(run, method=self.method, **changes)

    def axes(self, run: Parallelism) -> dict[str, int]:
        """Return the options of the axis sizes that the peer needs; empty if it needs none."""
        ring_only = {"ring_parallel_size": run.world_size, "sequence_parallel_size": 1}
        return ring_only if self.ring else {}

    def differs(self, part: str) -> str:
        """Return the differences between the peer's work and this project's, in words."""
        words = (self.blocks, self.outside_blocks if part == "model" else "")
        return "; ".join(filter(None, words))

    def load(self) -> Build:
        """Import the peer's module and return its build function."""
        module, name = self.build.split(":")
        return getattr(import_module(f"methods.peers.{module}"), name)


PARTS = ("model", "blocks")
"""Parts of a model that can be compared: all of it, or its transformer blocks alone."""
