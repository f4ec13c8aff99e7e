"""GPUs that a dry run is for: their memory, what a step never gets of it, and how fast they are.

A user's own is a YAML file with the fields of :class:`Hardware`; ``python -m bench calibrate``
writes one by measuring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.hardware.speeds import Attention, Link, Points, Speeds

GIB, MIB = 2**30, 2**20
NCCL_PEER_BYTES = 32 * 14 * MIB
"""What NCCL takes of a GPU for another one of its node, the first time that an all-to-all or a send
goes there: 32 channels ("32 p2p channels per peer" in logs of A100 and H100 nodes) of 14 MiB. For
seven others that is 3.29 GB; 3.28, in buffers of 10 and 2 MiB, were seen on eight H100
(NVIDIA/nccl#1685)."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of node.

    Attributes:
        memory_bytes: Of one GPU, as CUDA reports it; of a CPU, one rank's share.
        context_bytes: Of it, what the CUDA context takes, outside PyTorch's allocator.
        nccl_bytes: Of it, what NCCL's communicators take, likewise.
        nccl_peer_bytes: And what they take besides for every GPU of the node that one sends to
            (:func:`bench.simulator.placement.connected`).
        workspace_bytes: What cuBLAS holds from PyTorch's allocator.
        gpus_per_node: Ranks that share a host.
        host_memory_bytes: Of that host.
        device: cuda, or cpu for ranks that compute on their host.
        dtype: That the speeds are of, as ``--dtype`` has it; empty where nothing says so.
        speeds: None where they are not known: such a dry run predicts no time.
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
        """What the tensors of a step may take on a GPU that sends to no other of its node."""
        return self.memory_bytes - self.context_bytes - self.nccl_bytes - self.workspace_bytes

    def ranks_per_node(self, world_size: int) -> int:
        """Of a world of so many ranks."""
        return min(self.gpus_per_node, world_size)


# FlashAttention-3's forward by length on H100, as a share of that at 16K tokens (pytorch/benchmark
# pull request 2391: head size 128, 430 to 621 TFLOP/s).
_BY_LENGTH = ((512, 0.693), (1024, 0.833), (2048, 0.911), (4096, 0.951), (8192, 0.990), (16384, 1))
# Of peak FLOP/s, forward and backward. FlashAttention-2: up to 73 % and 63 % on A100 (arXiv
# 2307.08691 §4.1), 35 % on H100 (arXiv 2407.08608, abstract); FlashAttention-3: up to 75 %
# (the same), its backward 1.5 to 1.75 times FlashAttention-2's (its §4.1), of which the middle.
_FLASH_ON_AMPERE = {"flash_attention_2": (0.73, 0.63)}
_FLASH_ON_HOPPER = {"flash_attention_2": (0.35, 0.35), "flash_attention_3": (0.75, 0.57)}
# Bus bandwidth of NCCL's all-reduce over eight H200 by message size, stas00/ml-engineering; its
# all-gather reaches 361 GB/s. Other links are taken to need as large messages.
_ALL_REDUCE = ((1, 40e9), (4, 107e9), (16, 220e9), (64, 346e9), (256, 436e9), (1024, 464e9))
# The same of 32 B200 on four nodes with cards of 400 Gb/s (same source), at seven sizes. A node is
# taken to reduce before its eight cards exchange an eighth each: 3/31 of the bus bandwidth a card.
# Rings, as all collectives over nodes are priced, send 4/31: 23 % slower than that all-reduce.
_OVER_NODES = (
    *((1, 12.47e9), (4, 31.63e9), (16, 71.80e9), (64, 197.77e9)),
    *((256, 283.23e9), (1024, 365.99e9), (16384, 376.71e9)),
)
_OF_A_CARD = _OVER_NODES[-1][1] * 3 / 31 / 50e9


def _scaled(points: Points, unit: float, to: float) -> Points:
    """A curve with other units of x whose last y is this."""
    return tuple((x * unit, y * to / points[-1][1]) for x, y in points)


def _attention(of_peak: dict[str, tuple[float, float]], peak: float) -> dict[str, Attention]:
    return {
        name: Attention(
            forward=_scaled(_BY_LENGTH, 1, forward * peak),
            backward=_scaled(_BY_LENGTH, 1, backward * peak),
        )
        for name, (forward, backward) in of_peak.items()
    }


def _speeds(
    *,
    of_peak: dict[str, tuple[float, float]],
    peak: float,
    matmul: float,
    memory: float,
    multiprocessors: int,
    host_link: float,
    host_memory: float,
    rings: float,
    nvls: float = 0,
    network: float,
) -> Speeds:
    """A GPU's, in FLOP/s and bytes/s.

    The host takes 5 us to issue an operation (a launch alone takes 2 to 10). All-to-alls and hops
    are taken to reach what rings do.

    Args:
        rings: Bus bandwidth of large collectives in a node.
        nvls: Of all-reduces in NVSwitch, which NCCL prefers for more than four GPUs; 0 without.
        network: Line rate of one GPU's card.
    """
    links = [Link(points=_scaled(_ALL_REDUCE, MIB, rings))]
    if nvls:
        reduced = [(4, rings), (8, nvls)]
        links += [
            Link(collective="all_reduce", ranks=n, points=_scaled(_ALL_REDUCE, MIB, rate))
            for n, rate in reduced
        ]
    return Speeds(
        peak_flops_per_s=peak,
        issue_s=5e-6,
        multiprocessors=multiprocessors,
        matmul=((16384.0, 16384.0, 16384.0, matmul),),
        attention=_attention(of_peak, peak),
        memory=((1.0, memory),),
        host_memory_bytes_per_s=host_memory,
        to_host_bytes_per_s=host_link,
        to_device_bytes_per_s=host_link,
        network_bytes_per_s=_scaled(_OVER_NODES, MIB, _OF_A_CARD * network),
        links=tuple(links),
    )


def _node_of_eight(
    memory_gib: float, workspace_mib: int, host_bytes: float, known: Speeds | None
) -> Hardware:
    """An NVLink node. A context takes about 1 GiB, NCCL "some" (ALST's and NCCL's users report 1 to
    4): 2 GiB are assumed here, before anything is sent from GPU to GPU."""
    return Hardware(
        memory_bytes=int(memory_gib * GIB),
        context_bytes=GIB,
        nccl_bytes=2 * GIB,
        nccl_peer_bytes=NCCL_PEER_BYTES,
        workspace_bytes=workspace_mib * MIB,
        gpus_per_node=8,
        host_memory_bytes=int(host_bytes),
        speeds=known,
    )


# Data sheets, but for matmuls (the best that stas00/ml-engineering has achieved), rings and NVLS
# (the same, of H200 and A100). Host memory: a DGX's channels (16 of DDR4-3200, 16 of DDR5-4800), an
# eighth for each GPU. Host link: PCIe 4 and 5, as the same reaches them. Cards: 200 and 400 Gb/s.
_A100 = _speeds(
    of_peak=_FLASH_ON_AMPERE,
    peak=312e12,
    matmul=271e12,
    memory=2.0e12,
    multiprocessors=108,
    host_link=25e9,
    host_memory=409.6e9 / 8,
    rings=235e9,
    network=25e9,
)
_H100 = _speeds(
    of_peak=_FLASH_ON_HOPPER,
    peak=989e12,
    matmul=795e12,
    memory=3.35e12,
    multiprocessors=132,
    host_link=55e9,
    host_memory=614.4e9 / 8,
    rings=361e9,
    nvls=464e9,
    network=50e9,
)

# Memory: "total capacity" in PyTorch's out-of-memory messages. Workspace: cuBLAS's recommendation,
# which PyTorch follows (32 MiB from Hopper on; CUDABlas.cpp). Host: the nodes of ALST (arXiv
# 2506.13996) for H100, NVIDIA's DGX data sheets for the others. Nobody has published how fast
# FlashAttention-2 is on B200: no times for it.
PROFILES = {
    "a100-80g": _node_of_eight(79.15, 8, 2.0e12, _A100),
    "h100-80g": _node_of_eight(79.11, 32, 1.9e12, _H100),
    "h200-141g": _node_of_eight(139.81, 32, 2.0e12, replace(_H100, memory=((1.0, 4.8e12),))),
    "b200-180g": _node_of_eight(178.35, 32, 2.0e12, None),
}


def with_speeds() -> str:
    """The profiles that times can be predicted for, for messages."""
    known = ", ".join(name for name, of in PROFILES.items() if of.speeds)
    return f"hardware = {known}, or a file that python -m bench calibrate wrote"
