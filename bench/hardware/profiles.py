"""Hardware profiles: a node's memory and speeds, for dry runs; the built-in ones with sources.

A user's own profile is a YAML file with the fields of :class:`Hardware` (docs/hardware.md);
``python -m bench calibrate`` writes one by measuring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.hardware.speeds import Attention, Link, Points, Speeds
from bench.meters.data_sheet import PEAK_BF16_FLOPS_PER_S

GIB, MIB = 2**30, 2**20
NCCL_PEER_BYTES = 32 * 14 * MIB
"""GPU memory that NCCL takes per peer of the node, when an all-to-all or a send first goes there.

It is 32 channels ("32 p2p channels per peer" in logs of A100 and H100 nodes) of 14 MiB. For seven
peers that is 3.29 GB; 3.28 GB, in buffers of 10 and 2 MiB, were seen on eight H100
(NVIDIA/nccl#1685)."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of node.

    Attributes:
        memory_bytes: Memory of one GPU, as CUDA reports it; on CPU, one rank's share.
        context_bytes: Part of it that the CUDA context takes, outside PyTorch's allocator.
        nccl_bytes: Part of it that NCCL's communicators take, outside PyTorch's allocator.
        nccl_peer_bytes: Further memory that they take per GPU of the node that a GPU sends to
            (:func:`bench.simulator.placement.connected`).
        workspace_bytes: Memory that cuBLAS holds from PyTorch's allocator.
        gpus_per_node: Ranks that share a host.
        host_memory_bytes: Memory of that host.
        device: cuda, or cpu for ranks that compute on their host.
        dtype: Dtype of the speeds, named like ``--dtype``; empty if they are of any.
        speeds: None if they are unknown: a dry run then predicts no time.
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


# FlashAttention-3's forward rate by length on H100, over its rate at 16K tokens (pytorch/benchmark
# pull request 2391: head size 128, 430 to 621 TFLOP/s).
_BY_LENGTH = ((512, 0.693), (1024, 0.833), (2048, 0.911), (4096, 0.951), (8192, 0.990), (16384, 1))
# Shares of peak FLOP/s, forward and backward. FlashAttention-2: up to 73 % and 63 % on A100 (arXiv
# 2307.08691 §4.1), 35 % on H100 (arXiv 2407.08608, abstract). FlashAttention-3: up to 75 % (same
# abstract); its backward is 1.5 to 1.75 times FlashAttention-2's (its §4.1): the middle is taken.
_FLASH_ON_AMPERE = {"flash_attention_2": (0.73, 0.63)}
_FLASH_ON_HOPPER = {"flash_attention_2": (0.35, 0.35), "flash_attention_3": (0.75, 0.57)}
# Bus bandwidth of NCCL's all-reduce over eight H200 by message size, stas00/ml-engineering; its
# all-gather reaches 361 GB/s. Other links are assumed to need messages of the same size.
_ALL_REDUCE = ((1, 40e9), (4, 107e9), (16, 220e9), (64, 346e9), (256, 436e9), (1024, 464e9))
# The same of 32 B200 on four nodes, cards of 400 Gb/s (same source), at seven sizes. The node is
# assumed to reduce before its eight cards exchange an eighth each: 3/31 of the bus bandwidth per
# card. All collectives over nodes are priced as rings, which send 4/31: 23 % slower than that
# all-reduce.
_OVER_NODES = (
    *((1, 12.47e9), (4, 31.63e9), (16, 71.80e9), (64, 197.77e9)),
    *((256, 283.23e9), (1024, 365.99e9), (16384, 376.71e9)),
)
_OF_A_CARD = _OVER_NODES[-1][1] * 3 / 31 / 50e9


def _scaled(points: Points, unit: float, to: float) -> Points:
    """Return the curve with x in another unit, scaled so that its last y is `to`."""
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
    """Return a GPU's speeds, from FLOP/s and bytes/s.

    The host takes 5 us to issue an operation (a launch alone takes 2 to 10). All-to-alls and ring
    hops are assumed to reach the bandwidth of rings.

    Args:
        rings: Bus bandwidth of large collectives in a node.
        nvls: Bus bandwidth of all-reduces in NVSwitch, which NCCL prefers for more than four GPUs;
            0 without NVSwitch reductions.
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
    """Return the profile of an NVLink node.

    A context takes about 1 GiB. Users of ALST and of NCCL report 1 to 4 GiB for NCCL; 2 GiB are
    assumed here, before anything is sent from GPU to GPU.
    """
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


# Data sheets, except: matmuls, the best rate in stas00/ml-engineering; rings and NVLS, measured
# there on A100 and H200; host links, PCIe 4 and 5 as measured there. Host memory: a DGX's channels
# (16 of DDR4-3200, 16 of DDR5-4800), an eighth per GPU. Network cards: 200 and 400 Gb/s.
_A100 = _speeds(
    of_peak=_FLASH_ON_AMPERE,
    peak=PEAK_BF16_FLOPS_PER_S["A100"],
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
    peak=PEAK_BF16_FLOPS_PER_S["H100"],
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
# 2506.13996) for H100, NVIDIA's DGX data sheets for the others. FlashAttention-2's speed on B200 is
# not published, so that profile has no speeds.
PROFILES = {
    "a100-80g": _node_of_eight(79.15, 8, 2.0e12, _A100),
    "h100-80g": _node_of_eight(79.11, 32, 1.9e12, _H100),
    "h200-141g": _node_of_eight(139.81, 32, 2.0e12, replace(_H100, memory=((1.0, 4.8e12),))),
    "b200-180g": _node_of_eight(178.35, 32, 2.0e12, None),
}


def with_speeds() -> str:
    """Name the profiles that times can be predicted for, for messages."""
    known = ", ".join(name for name, of in PROFILES.items() if of.speeds)
    return f"hardware = {known}, or a file that python -m bench calibrate wrote"
