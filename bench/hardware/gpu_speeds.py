"""Speeds of the built-in profiles' GPUs. bench/hardware/sources.py says what each rests on."""

from __future__ import annotations

from dataclasses import replace

from bench.hardware.speeds import Attention, Link, Points, Speeds
from bench.meters.data_sheet import PEAK_BF16_FLOPS_PER_S

_MIB = 2**20
# FlashAttention-3's forward rate by length on H100, over its rate at 16K tokens (pytorch/benchmark
# pull request 2391: head size 128, 430 to 621 TFLOP/s).
_BY_LENGTH = ((512, 0.693), (1024, 0.833), (2048, 0.911), (4096, 0.951), (8192, 0.990), (16384, 1))
# Shares of peak FLOP/s, forward and backward. FlashAttention-2 on A100: 58 % together over 65,536
# tokens, one after another (ring-flash-attention's README, 11.8 iterations/s of eight GPUs),
# divided as the best ones, 73 % and 63 % (arXiv 2307.08691 §4.1). On H100 35 % (arXiv 2407.08608,
# abstract), on B200 17 % and 15 % (Dao-AILab/flash-attention#1589). FlashAttention-3: up to 75 %
# (same abstract); its backward is 1.5 to 1.75 times FlashAttention-2's (its §4.1): the middle is
# taken.
_FLASH_ON_AMPERE = {"flash_attention_2": (0.65, 0.56)}
_FLASH_ON_HOPPER = {"flash_attention_2": (0.35, 0.35), "flash_attention_3": (0.75, 0.57)}
_FLASH_ON_BLACKWELL = {"flash_attention_2": (379 / 2250, 334 / 2250)}
_FLASH_ROWS = 128
"""Rows of queries, and in backward of keys, that a block of threads of these kernels computes."""
_CHANNELS = 16
"""Multiprocessors of one collective of NCCL: "16 coll channels" on eight H800 (NVIDIA/nccl#892)."""
_ISSUE_S, _HOOKS_S = 30e-6, 0.8e-3
"""The host's seconds as `calibrate` measures them, in one process on an otherwise idle Intel Xeon
at 2.6 GHz: 30 us in a run of medians from 30 to 44, and 0.8 ms of 0.5 to 1.1."""
_OF_MEMORY = 0.89
"""Share of the data sheet's memory bandwidth that PyTorch's elementwise kernels reach: 1,727 of
1,935 GB/s on A800 (mli/transformers-benchmarks#4)."""
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
_A100_PEAK, _H100_PEAK, _B200_PEAK = (
    PEAK_BF16_FLOPS_PER_S[name] for name in ("A100", "H100", "B200")
)
# Sustained rates of matmuls that fill the GPU (scripts/validation/matmuls.py). Single matmuls of
# chosen shapes reach up to 271 TFLOP/s on A100 and 795 on H100 (stas00/ml-engineering).
_A100_MATMUL, _H100_MATMUL, _B200_MATMUL = 238e12, 704e12, 1067e12
_H100_BEST = 795e12
_NVLINK, _NVLS = 361e9, 464e9


def _scaled(points: Points, unit: float, to: float) -> Points:
    """Return the curve with x in another unit, scaled so that its last y is `to`."""
    return tuple((x * unit, y * to / points[-1][1]) for x, y in points)


def _attention(of_peak: dict[str, tuple[float, float]], peak: float) -> dict[str, Attention]:
    return {
        name: Attention(
            forward=_scaled(_BY_LENGTH, 1, forward * peak),
            backward=_scaled(_BY_LENGTH, 1, backward * peak),
            rows_forward=_FLASH_ROWS,
            rows_backward=_FLASH_ROWS,
        )
        for name, (forward, backward) in of_peak.items()
    }


def _matmul(rate: float) -> tuple[tuple[float, float, float, float], ...]:
    """Return one rate for all shapes."""
    return ((16384.0, 16384.0, 16384.0, rate),)


def _memory(bytes_per_s: float) -> Points:
    """Return the bandwidth of elementwise kernels, from the data sheet's of the memory."""
    return ((1.0, _OF_MEMORY * bytes_per_s),)


def _network(line_rate: float) -> Points:
    """Return the curve of one GPU's network card, from its line rate in bytes/s."""
    return _scaled(_OVER_NODES, _MIB, _OF_A_CARD * line_rate)


def _links(rings: float, nvls: float = 0) -> tuple[Link, ...]:
    """Return the links of a node. All-to-alls and ring hops are assumed to reach rings' bandwidth.

    Args:
        rings: Bus bandwidth of large collectives.
        nvls: Bus bandwidth of all-reduces in NVSwitch, which NCCL prefers for more than four GPUs;
            0 without NVSwitch reductions.
    """
    reduced = [(4, rings), (8, nvls)] if nvls else []
    return (
        Link(points=_scaled(_ALL_REDUCE, _MIB, rings)),
        *(
            Link(collective="all_reduce", ranks=n, points=_scaled(_ALL_REDUCE, _MIB, rate))
            for n, rate in reduced
        ),
    )


def _links_of_b200() -> tuple[Link, ...]:
    """Return the links of eight B200: rates and latencies that SimuMax measured. Ring hops are
    assumed to reach an all-gather's rate."""
    measured = {
        "": (606e9, 32e-6),
        "all_reduce": (668e9, 28e-6),
        "all_to_all": (537e9, 7e-6),
    }

    def points(rate: float, latency_s: float) -> Points:
        sizes = (_MIB * 4**power for power in range(6))
        return tuple((size, size / (latency_s + size / rate)) for size in sizes)

    return tuple(Link(collective=name, points=points(*of)) for name, of in measured.items())


A100 = Speeds(
    peak_flops_per_s=_A100_PEAK,
    issue_s=_ISSUE_S,
    hooks_s=_HOOKS_S,
    multiprocessors=108,
    collective_multiprocessors=_CHANNELS,
    matmul=_matmul(_A100_MATMUL),
    attention=_attention(_FLASH_ON_AMPERE, _A100_PEAK),
    memory=_memory(2.0e12),
    host_memory_bytes_per_s=409.6e9 / 8,
    to_host_bytes_per_s=25e9,
    to_device_bytes_per_s=25e9,
    network_bytes_per_s=_network(25e9),
    links=_links(235e9),
)
H100 = Speeds(
    peak_flops_per_s=_H100_PEAK,
    issue_s=_ISSUE_S,
    hooks_s=_HOOKS_S,
    multiprocessors=132,
    collective_multiprocessors=_CHANNELS,
    matmul=_matmul(_H100_MATMUL),
    attention=_attention(_FLASH_ON_HOPPER, _H100_PEAK),
    memory=_memory(3.35e12),
    host_memory_bytes_per_s=614.4e9 / 8,
    to_host_bytes_per_s=55e9,
    to_device_bytes_per_s=55e9,
    network_bytes_per_s=_network(50e9),
    links=_links(_NVLINK, _NVLS),
)
H200 = replace(H100, memory=_memory(4.8e12))
B200 = replace(
    H100,
    peak_flops_per_s=_B200_PEAK,
    multiprocessors=148,
    matmul=_matmul(_B200_MATMUL),
    attention=_attention(_FLASH_ON_BLACKWELL, _B200_PEAK),
    memory=((1.0, 0.666 * 8e12),),
    host_memory_bytes_per_s=716.8e9 / 8,
    links=_links_of_b200(),
)
# Export variants: the same chips with 400 GB/s of NVLink in place of 600 and 900.
A800 = replace(A100, links=_links(235e9 * 400 / 600))
H800 = replace(H100, links=_links(_NVLINK * 400 / 900, _NVLS * 400 / 900))


def _hopper(peak: float, matmul: float, multiprocessors: int, memory: float) -> Speeds:
    """Return the speeds of a slower Hopper: as H100, attention scaled like the rate of matmuls."""
    return replace(
        H100,
        peak_flops_per_s=peak,
        matmul=_matmul(matmul),
        attention=_attention(_FLASH_ON_HOPPER, _H100_PEAK * matmul / _H100_BEST),
        memory=_memory(memory),
        multiprocessors=multiprocessors,
    )


H20 = _hopper(PEAK_BF16_FLOPS_PER_S["H20"], 142.25e12, 78, 4.0e12)
H100_PCIE = replace(
    _hopper(PEAK_BF16_FLOPS_PER_S["H100 PCIe"], 495.93e12, 114, 2.0e12),
    links=_links(55e9),
    network_bytes_per_s=_network(25e9),
)
GH200 = replace(
    H100,
    memory=_memory(4.0e12),
    host_memory_bytes_per_s=384e9,
    to_host_bytes_per_s=300e9,
    to_device_bytes_per_s=346e9,
    links=(),
)
