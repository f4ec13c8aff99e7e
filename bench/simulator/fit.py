"""Whether a run fits: the bytes that it needs on one GPU and on one node's host, and their limits.

Dry runs and plans ask here, about a hardware profile. Before a real run bench/runner/host_limit.py
compares the same closed form with the same share of this machine's host memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bench.hardware import profile_file
from bench.hardware.profiles import Hardware
from bench.simulator import placement
from bench.theory import memory as theory_memory
from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import node_limit_bytes


@dataclass(frozen=True)
class Need:
    """Bytes that a run needs, and bytes that a profile's hardware has for it.

    Attributes:
        gpu: Peak of one rank's tensors on its GPU.
        gpu_limit: Bytes that tensors may take there.
        host: Host memory that the ranks of one node offload to, together.
        host_limit: Host memory that they may take.
        device: cuda, or cpu for ranks that compute on their host.
    """

    gpu: int
    gpu_limit: int
    host: int
    host_limit: int
    device: str

    @property
    def limit(self) -> str:
        """The memory that is too small: GPU or host; empty if the run fits."""
        return "GPU" if self.gpu > self.gpu_limit else "host" if self.host > self.host_limit else ""

    @cached_property
    def share(self) -> float:
        """Need over limit of the scarcer memory; above 1 the run does not fit."""
        return max(self.gpu / self.gpu_limit, self.host / self.host_limit)

    @property
    def outcome(self) -> dict[str, str]:
        """The row's columns status and error if the run does not fit; empty if it does."""
        if self.limit == "GPU":
            status, where = {"cuda": ("oom_gpu", "on the GPU"), "cpu": ("oom_cpu", "of a rank")}[
                self.device
            ]
            error = f"{self.gpu} bytes {where}, of which {self.gpu_limit} are to be had"
            return {"status": status, "error": error}
        if self.limit:
            error = f"{self.host} bytes on a host, which may give {self.host_limit}"
            return {"status": "oom_cpu", "error": error}
        return {}


def need(run: RunConfig, gpu_bytes: int, host_bytes: int | None = None) -> Need:
    """Return what a run needs on its profile, and the limits.

    Args:
        gpu_bytes: Peak of the tensors on the GPU of the rank with the most.
        host_bytes: Host memory that this rank offloads to; by default by its closed form.
    """
    if host_bytes is None:
        host_bytes = theory_memory.host_bytes(run)
    profile = profile_file.find(run.hardware)
    return Need(
        gpu=gpu_bytes,
        gpu_limit=gpu_limit_bytes(run, profile),
        host=host_bytes * profile.ranks_per_node(run.world_size),
        host_limit=node_limit_bytes(run, profile.host_memory_bytes),
        device=profile.device,
    )


def gpu_limit_bytes(run: RunConfig, profile: Hardware) -> int:
    """Bytes that a step's tensors may take on one GPU of a profile."""
    peers = placement.connected(run, profile.gpus_per_node)
    return profile.usable_bytes - peers * profile.nccl_peer_bytes
