"""Other implementations of the same methods, to be timed beside this project's in the same run.

Each file is a peer's own fast path, as its documentation has it, around the plain model of
``plain.py``; it is imported when it is asked for, and its package may be missing.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor, nn

from odysseus.config.run import RunConfig
from odysseus.config.sizes import divisors
from odysseus.io.text import Batch
from odysseus.parallel.mesh import Mesh, pick_device
from odysseus.training.block_trainer import Stream

PREFIX = "peer:"
"""Of a run's method: ``peer:NAME`` is that peer."""
_CUT = {
    "tp": ("num_key_value_heads", "intermediate_size"),
    "tp_sp": ("num_key_value_heads", "intermediate_size"),
}
"""By method, sizes of the model that its peers cut into as many parts as there are ranks."""


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
        tricks: Options of ours that make its work the peer's.
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
    tricks: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    install: str = "-r requirements-peers.txt"
    ring: bool = False
    cuts: tuple[str, ...] = ()
    least_ranks: int = 1
    devices: tuple[str, ...] = ("cpu", "cuda")
    gpu_package: str = ""

    def ours(self, run: RunConfig) -> RunConfig:
        """What of ours a run compares with it."""
        return replace(run, method=self.method, **self.tricks, **self.axes(run))

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

_WHOLE_LOGITS = "all logits on every rank, replicated embedding and head activations"
_BY_VOCABULARY = "logits cut by vocabulary, not by tokens; embedding and head cut, not gathered"
_OF_SHARD = "a shard's logits whole"
_UNPACKED = "weights not packed"
_FIVE = f"{_UNPACKED}: five all-reduces of a block's input gradients, not two"
_KEEPS = {"regather": False}  # gathered tokens, for backward
_KEEPS_WEIGHTS = {"reshard_after_forward": False}  # gathered ones, for backward
_EXCHANGED = f"q, k, v exchanged one by one; {_UNPACKED}"
PEERS = {
    "dtensor_tp": Peer("tp", "torch", "dtensor:tensor_parallel", _FIVE, _WHOLE_LOGITS),
    "dtensor_tp_sp": Peer(
        "tp_sp",
        "torch",
        "dtensor:sequence_parallel",
        _UNPACKED,
        _WHOLE_LOGITS,
        tricks=_KEEPS,
    ),
    "dtensor_tp_sp_loss": Peer(
        "tp_sp",
        "torch",
        "dtensor:sequence_and_loss_parallel",
        _UNPACKED,
        _BY_VOCABULARY,
        tricks=_KEEPS,
    ),
    "fairscale_tp": Peer("tp", "fairscale", "fairscale_tp:build", _FIVE, _WHOLE_LOGITS),
    "megatron_tp": Peer(
        "tp",
        "megatron",
        "megatron_core:tensor_parallel",
        "SwiGLU not compiled",
        f"{_BY_VOCABULARY}; loss not compiled",
        cuts=("vocab_size",),
    ),
    "megatron_tp_sp": Peer(
        "tp_sp",
        "megatron",
        "megatron_core:sequence_parallel",
        "SwiGLU not compiled",
        f"{_BY_VOCABULARY}; loss not compiled",
        cuts=("vocab_size",),
        least_ranks=2,
    ),
    "torchtitan_tp_sp": Peer(
        "tp_sp",
        "torchtitan spmd_types tyro",
        "torchtitan_llama:tensor_and_sequence_parallel",
        "gate and up not packed; rotary embedding in complex numbers",
        _BY_VOCABULARY,
        tricks=_KEEPS,
        install="--no-deps -r requirements-torchtitan.txt",
    ),
    "yunchang_ulysses": Peer(
        "ulysses", "yunchang", "yunchang_ulysses:build", _EXCHANGED, _OF_SHARD
    ),
    "yunchang_ring": Peer(
        "ulysses",
        "yunchang",
        "yunchang_ring:build",
        "keys and values sent apart, their gradients one hop further; on a CPU PyTorch's flash "
        f"attention in flash-attn's place; {_UNPACKED}",
        _OF_SHARD,
        dtypes=("bf16",),
        ring=True,
        gpu_package="flash_attn",
    ),
    "torch_context_parallel": Peer(
        "ulysses",
        "torch",
        "torch_context_parallel:build",
        f"keys and values gathered whole, their gradients go round; {_UNPACKED}",
        _OF_SHARD,
        ring=True,
        devices=("cpu",),
    ),
    "deepspeed_ulysses": Peer(
        "ulysses",
        "deepspeed transformers",
        "deepspeed_zero3:ulysses",
        _EXCHANGED,
        _OF_SHARD,
        tricks=_KEEPS_WEIGHTS,
        cuts=("num_key_value_heads",),
    ),
    "deepspeed_alst": Peer(
        "ulysses",
        "deepspeed transformers",
        "deepspeed_zero3:alst",
        f"{_EXCHANGED}; position ids gathered in every block",
        tricks=_KEEPS_WEIGHTS | {"tiled_mlp_compute": True, "tiled_loss_compute": True},
    ),
}


def name_of(method: str) -> str:
    """The peer that a run's method is; empty if it is one of ours."""
    return method.removeprefix(PREFIX) if method.startswith(PREFIX) else ""


def check_cell(name: str, run: RunConfig) -> None:
    """Raise ValueError unless the peer can do the run's dtype, device, ranks and sizes."""
    peer, ranks, device = PEERS[name], run.world_size, pick_device(run.device).type
    for key, given, valid in (("dtype", run.dtype, peer.dtypes), ("device", device, peer.devices)):
        if given not in valid:
            raise ValueError(f"{key} = {given} is not for peer {name}; valid: {', '.join(valid)}")
    check_device(name, device)
    if ranks < peer.least_ranks:
        raise ValueError(
            f"world_size = {ranks} is not for peer {name}; valid: {peer.least_ranks} or more"
        )
    cut = (*_CUT.get(peer.method, ()), *peer.cuts)
    sizes = {key: getattr(run.architecture, key) for key in cut}
    for key, size in sizes.items():
        if size % ranks:
            raise ValueError(
                f"model.{key} = {size} does not divide by world_size = {ranks}, which peer {name} "
                f"needs; valid: world_size of {divisors(math.gcd(*sizes.values()))}"
            )


def check_device(name: str, device: str) -> None:
    """Raise ValueError unless what the peer needs on a kind of device is installed."""
    package = PEERS[name].gpu_package
    if device == "cuda" and package and importlib.util.find_spec(package) is None:
        raise ValueError(
            f"device = {device}: peer {name} needs the package {package} there; valid without it: "
            "cpu, or other peers"
        )


def check(name: str) -> None:
    """Raise ValueError unless there is such a peer and its package is installed."""
    if name not in PEERS:
        raise ValueError(f"peers: {name!r} is none; valid: all, {', '.join(PEERS)}")
    check_package(name)


def check_package(name: str) -> None:
    """Raise ValueError unless what the peer needs is installed."""
    for package in PEERS[name].package.split():
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"peer {name} needs the package {package}; valid: pip install "
                f"{PEERS[name].install}, or other peers"
            )
