"""yunchang's Ulysses exchange around PyTorch's attention; weights in FSDP2."""

from __future__ import annotations

from methods.peers.fsdp import Trainer, sharded
from odysseus.model.attention import sdpa
from odysseus.config.run import RunConfig
from odysseus.parallel.ulysses import yunchang_attend
from odysseus.parallel.mesh import Mesh


def build(run: RunConfig, mesh: Mesh, part: str = "model") -> Trainer:
    return sharded(run, mesh, part, yunchang_attend(sdpa, mesh.sequence))
