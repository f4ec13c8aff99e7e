"""What a peer is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor, nn

from odysseus.config.run import RunConfig
from odysseus.io.text import Batch
from odysseus.parallel.mesh import Mesh
from odysseus.training.block_trainer import Stream


class Optimizer(Protocol):
    """What updates a peer's weights."""

    def step(self) -> None: ...

    def zero_grad(self) -> None: ...

    def held(self) -> Iterable[Tensor]:
        """What lives from step to step, for the memory meter; with or without the parameters."""
        ...


class PeerTrainer(Protocol):
    """A peer's model, or its blocks alone, on one rank.

    Attributes:
        model: Its parameters are the weights, or this rank's parts of them.
        optimizer: Updates them.
        whole_samples: Whether each rank reads whole samples, not its shard of them.
    """

    model: nn.Module
    optimizer: Optimizer
    whole_samples: bool

    def forward_backward(self, batch: Batch, tokens: int) -> Tensor:
        """Gradients of one step; this rank's part of the loss, of which all parts are the sum if
        ranks read shards, and each is the whole loss if they read whole samples."""
        ...

    def blocks_forward_backward(self, stream: Stream) -> Tensor:
        """Gradients of one step of blocks alone, those of ``stream.x`` among them; what comes out
        of the last block, in the layout of ``stream.x``."""
        ...

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Every gradient of a whole weight by its Hugging Face name; a collective."""
        ...


class Build(Protocol):
    def __call__(self, run: RunConfig, mesh: Mesh, part: str = "model") -> PeerTrainer:
        """A peer's trainer of a part of the run's model."""
        ...


@dataclass(frozen=True)
class Peer:
    """What is known of a peer before it is imported.

    Attributes:
        method: Of ours, which it is a peer of.
        package: What it needs; names of several are apart by a space.
        build: Where its :class:`Build` is: ``module:function`` of this package.
        blocks: How its blocks' work differs from ours, in words.
        around: How that of its embedding, head and loss does.
        overrides: Options of this project's run that make its work equal to the peer's.
        dtypes: What it can compute in.
        install: What pip installs to have its packages.
        ring: Whether ours is on the ring axis, not on the sequence axis.
        cuts: Sizes of the model that it cuts by ranks beyond those of its method.
        least_ranks: How many there must be.
        devices: Where it can compute.
        gpu_package: What it needs besides on GPUs.
    """

    method: str
    package: str
    build: str
    blocks: str
    around: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    install: str = "-r requirements-peers.txt"
    ring: bool = False
    cuts: tuple[str, ...] = ()
    least_ranks: int = 1
    devices: tuple[str, ...] = ("cpu", "cuda")
    gpu_package: str = ""

    def ours(self, run: RunConfig) -> RunConfig:
        """What of ours a run compares with it."""
        return replace(run, method=self.method, **self.overrides, **self.axes(run))

    def axes(self, run: RunConfig) -> dict[str, int]:
        """What its run's axes are, unless they are the run's own."""
        of_ring = {"ring_parallel_size": run.world_size, "sequence_parallel_size": 1}
        return of_ring if self.ring else {}

    def differs(self, part: str) -> str:
        """How a part's work differs from ours, in words."""
        words = (self.blocks, self.around if part == "model" else "")
        return "; ".join(filter(None, words))

    def load(self) -> Build:
        module, name = self.build.split(":")
        return getattr(import_module(f"methods.peers.{module}"), name)


PARTS = ("model", "blocks")
"""What of a model is compared: all of it, or its transformer blocks alone."""
