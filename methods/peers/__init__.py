"""Other implementations of the same methods, to be timed beside this project's in the same run.

Each file is a peer's own fast path, as its documentation has it, around the plain model of
``plain.py``; it is imported when it is asked for, and its package may be missing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from torch import Tensor, nn

from odysseus.config import RunConfig
from odysseus.data import Batch
from odysseus.mesh import Mesh


class PeerTrainer(Protocol):
    """A peer's model on one rank.

    Attributes:
        model: What the optimizer updates and the meters watch.
        whole_samples: Whether each rank reads whole samples, not its shard of them.
    """

    model: nn.Module
    whole_samples: bool

    def forward_backward(self, batch: Batch, tokens: int) -> Tensor:
        """Gradients of one step; this rank's part of the loss, of which all parts are the sum if
        ranks read shards, and each is the whole loss if they read whole samples."""
        ...

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Every whole gradient by its Hugging Face name; a collective."""
        ...


@dataclass(frozen=True)
class Peer:
    """What is known of a peer before it is imported.

    Attributes:
        method: Of ours, which it is a peer of.
        package: What it needs.
        build: Where it is made: ``module:function`` of this package, of (run, mesh).
        differs: How its work differs from ours, in words.
    """

    method: str
    package: str
    build: str
    differs: str

    def load(self) -> Callable[[RunConfig, Mesh], PeerTrainer]:
        module, name = self.build.split(":")
        return getattr(import_module(f"methods.peers.{module}"), name)


_WHOLE_LOGITS = "all logits on every rank, replicated embedding and head activations"
_BY_VOCABULARY = "logits cut by vocabulary, not by tokens; embedding and head cut, not gathered"
_MEGATRON = f"{_BY_VOCABULARY}; SwiGLU and loss not compiled"
PEERS = {
    "dtensor_tp": Peer("tp", "torch", "dtensor:tensor_parallel", _WHOLE_LOGITS),
    "dtensor_tp_sp": Peer("tp_sp", "torch", "dtensor:sequence_parallel", _WHOLE_LOGITS),
    "dtensor_tp_sp_loss": Peer(
        "tp_sp",
        "torch",
        "dtensor:sequence_and_loss_parallel",
        _BY_VOCABULARY,
    ),
    "fairscale_tp": Peer("tp", "fairscale", "fairscale_tp:build", _WHOLE_LOGITS),
    "megatron_tp": Peer("tp", "megatron", "megatron_core:tensor_parallel", _MEGATRON),
    "megatron_tp_sp": Peer("tp_sp", "megatron", "megatron_core:sequence_parallel", _MEGATRON),
    "yunchang_ulysses": Peer(
        "ulysses",
        "yunchang",
        "yunchang_ulysses:build",
        "q, k, v exchanged one by one; a shard's logits whole; weights not packed",
    ),
}


def check(name: str) -> None:
    """Raise ValueError unless there is such a peer and its package is installed."""
    if name not in PEERS:
        raise ValueError(f"peers: {name!r} is none; valid: all, {', '.join(PEERS)}")
    package = PEERS[name].package
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"peers: {name} needs the package {package}; valid: pip install -r "
            "requirements-peers.txt, or other peers"
        )
