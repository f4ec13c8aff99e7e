"""Hardware profiles: a node's memory and speeds, for dry runs; and the built-in ones.

bench/hardware/sources.py says what each number of the built-in profiles rests on.

A user's own profile is a YAML file with the fields of :class:`Hardware` (docs/hardware.md);
``python -m bench calibrate`` writes one by measuring.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.hardware import gpu_speeds
from bench.hardware.speeds import Speeds

GIB, MIB = 2**30, 2**20
NCCL_PEER_BYTES = 32 * 14 * MIB
"""GPU memory that NCCL takes per peer of the node, when an all-to-all or a send first goes there.

It is 32 channels ("32 p2p channels per peer" in logs of A100 and H100 nodes) of 14 MiB. For seven
peers that is 3.29 GB; 3.28 GB, in buffers of 10 and 2 MiB, were seen on eight H100
(NVIDIA/nccl#1685)."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of node; ``python -m bench hardware NAME`` prints these texts beside the values.

    Attributes:
        memory_bytes: Bytes of memory of one GPU, as CUDA reports it; on CPU, one rank's share.
        context_bytes: Bytes of memory_bytes that the CUDA context takes, outside PyTorch's
            allocator.
        nccl_bytes: Bytes of memory_bytes that NCCL's communicators take, outside PyTorch's
            allocator.
        nccl_peer_bytes: Further bytes that they take per GPU of the node that a GPU sends to
            (bench/simulator/placement.py).
        workspace_bytes: Bytes that cuBLAS holds from PyTorch's allocator.
        gpus_per_node: Number of ranks that share a host.
        host_memory_bytes: Bytes of memory of that host, of which offloading may take 90 %.
        device: cuda, or cpu for ranks that compute on their host.
        dtype: Dtype of the speeds, named like --dtype; empty if they are of any.
        speeds: Speeds of one rank; none if they are unknown: a dry run then predicts no time.
    """

    memory_bytes: int
    context_bytes: int
    nccl_bytes: int
    workspace_bytes: int
    gpus_per_node: int
    host_memory_bytes: int
    nccl_peer_bytes: int = 0
    device: str = "cuda"
    dtype: str = ""
    speeds: Speeds | None = None

    @property
    def usable_bytes(self) -> int:
        """Bytes that a step's tensors may take on a GPU that sends to no other GPU of its node."""
        return self.memory_bytes - self.context_bytes - self.nccl_bytes - self.workspace_bytes

    def ranks_per_node(self, world_size: int) -> int:
        """Return the ranks per node of a world of this size."""
        return min(self.gpus_per_node, world_size)


def _node(
    memory_gib: float,
    workspace_mib: int,
    host_bytes: float,
    known: Speeds | None,
    gpus_per_node: int = 8,
) -> Hardware:
    """Return the profile of a node of NVIDIA GPUs.

    A context takes about 1 GiB. Users of ALST and of NCCL report 1 to 4 GiB for NCCL; 2 GiB are
    assumed here, before anything is sent from GPU to GPU.
    """
    return Hardware(
        memory_bytes=int(memory_gib * GIB),
        context_bytes=GIB,
        nccl_bytes=2 * GIB,
        nccl_peer_bytes=NCCL_PEER_BYTES,
        workspace_bytes=workspace_mib * MIB,
        gpus_per_node=gpus_per_node,
        host_memory_bytes=int(host_bytes),
        speeds=known,
    )


# Nobody has published speeds of B300.
PROFILES = {
    "a100-80g": _node(79.15, 8, 2.0e12, gpu_speeds.A100),
    "h100-80g": _node(79.11, 32, 1.9e12, gpu_speeds.H100),
    "h200-141g": _node(139.81, 32, 2.0e12, gpu_speeds.H200),
    "b200-180g": _node(178.35, 32, 2.0e12, gpu_speeds.B200),
    "b300": _node(267.69, 32, 2.0e12, None),
    "a800-80g": _node(79.25, 8, 2.0e12, gpu_speeds.A800),
    "h800-80g": _node(79.11, 32, 2.0e12, gpu_speeds.H800),
    "h20": _node(94.88, 32, 2.0e12, gpu_speeds.H20),
    "h100-pcie": _node(79.11, 32, 1.0e12, gpu_speeds.H100_PCIE),
    "gh200": _node(94.88, 32, 480e9, gpu_speeds.GH200, gpus_per_node=1),
}


def with_speeds() -> str:
    """Name the profiles that times can be predicted for, for messages."""
    known = ", ".join(name for name, of in PROFILES.items() if of.speeds)
    return f"hardware = {known}, or a file that python -m bench calibrate wrote"
