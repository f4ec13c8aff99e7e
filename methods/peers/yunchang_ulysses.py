"""yunchang's Ulysses exchange around PyTorch's attention; weights in FSDP2."""

from __future__ import annotations

from methods.peers.fsdp import Trainer, sharded
from odysseus.config.run import RunConfig
from odysseus.model.attention import sdpa
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.yunchang import yunchang_all_to_all


def build(run: RunConfig, mesh: Mesh, part: str = "model") -> Trainer:
    """Build the trainer of yunchang's Ulysses."""
    return sharded(run, mesh, part, yunchang_all_to_all(sdpa, mesh.sequence))
