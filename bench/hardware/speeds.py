"""Speeds of one rank's device, of its host and of its links, and the curves through their points.

bench/simulator/cost_model.py turns them into the time of an operation. Bus bandwidth and message
sizes are those of NVIDIA's nccl-tests.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import log

Points = tuple[tuple[float, float], ...]
"""Points (x, y) of a curve, x ascending; :func:`curve` and :func:`bandwidth` interpolate."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """FLOP/s of one attention kernel by the number of keys.

    Attributes:
        forward: Forward of causal attention.
        backward: Backward of causal attention.
        whole_forward: Forward over a block of keys that every query sees, like most blocks of a
            ring; the causal rate if empty. A kernel masks whole tiles of keys, so where a tile is
            as long as the sequence, causal attention takes as long as attention without a mask.
        whole_backward: Backward over such a block.
        rows_forward: Query rows that one multiprocessor computes at a time in forward, so that few
            heads leave some idle; 0 if the rates include that.
        rows_backward: The same in backward, in rows of keys.
    """

    forward: Points
    backward: Points
    whole_forward: Points = ()
    whole_backward: Points = ()
    rows_forward: int = 0
    rows_backward: int = 0


@dataclass(frozen=True, kw_only=True)
class Link:
    """The bus bandwidth of collectives by the size of their messages.

    Attributes:
        collective: Name of the collective; empty for all.
        ranks: Size of the group it was measured on; 0 for any.
        nodes: Number of nodes that the group spans.
        stride: Distance from one rank of the group to the next; 0 for any.
        points: (size in bytes, bytes/s), with the sizes of
            :func:`bench.meters.traffic.bytes_sent`.
    """

    collective: str = ""
    ranks: int = 0
    nodes: int = 1
    stride: int = 0
    points: Points


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Speeds of one rank: of its device, unless an attribute names another part.

    Attributes:
        peak_flops_per_s: Peak rate in FLOP/s, of which MFU is a fraction.
        issue_s: Seconds of the host per operation, without computing.
        hooks_s: Seconds of the host per gather or reduction of ZeRO's, in its engine's hooks.
        multiprocessors: Number of multiprocessors that share the tiles of a matmul or of attention;
            0 if their rates include that.
        collective_multiprocessors: Number of them that a collective occupies while it runs.
        matmul: (rows, columns, inner size, FLOP/s) of matmuls; the nearest shapes count. With
            multiprocessors, the rates of matmuls that fill them.
        attention: FLOP/s by kernel, direction and number of keys.
        memory: Bytes/s of elementwise operations, by the bytes that they read and write.
        silu: Bytes/s of SiLU and its backward, which compute an exponential per element, by the
            bytes that they read and write; the rates of memory if empty.
        host_memory_bytes_per_s: One rank's share of its host's memory bandwidth, in bytes/s.
        to_host_bytes_per_s: Copies from device to host, in bytes/s.
        to_device_bytes_per_s: Copies from host to device, in bytes/s.
        network_bytes_per_s: One rank's share of the network in bytes/s, by the bytes of a message;
            used where no link was measured between nodes.
        links: Bus bandwidth of collectives in bytes/s by the bytes of a message, measured after
            little computing, or published.
        skew: Seconds that a collective takes more, by the seconds since the ranks last waited for
            each other; empty for none.
    """

    peak_flops_per_s: float
    issue_s: float
    hooks_s: float = 0
    multiprocessors: int = 0
    collective_multiprocessors: int = 0
    matmul: tuple[tuple[float, float, float, float], ...]
    attention: dict[str, Attention]
    memory: Points
    host_memory_bytes_per_s: float
    to_host_bytes_per_s: float
    to_device_bytes_per_s: float
    network_bytes_per_s: Points = ()
    links: tuple[Link, ...] = ()
    silu: Points = ()
    skew: Points = ()


def curve(points: Points, x: float) -> float:
    """Interpolate log-log between points; constant above the last one.

    Below the first of several points y is proportional to x, like a rate where time is all latency.
    """
    (lowest, y), (_, highest_y) = points[0], points[-1]
    at = bisect_left(points, (x,))
    if at == len(points):
        return highest_y
    if at == 0:
        return y * max(x, 1e-9) / lowest if len(points) > 1 else y
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    return y0 * (y1 / y0) ** (log(x / x0) / log(x1 / x0))


def bandwidth(points: Points, size: float) -> float:
    """Return the bytes/s of a message of a size.

    Between two points time is linear in the size, a latency and a rate (Hockney, doi
    10.1016/S0167-8191(06)80021-9); beyond the ends it is :func:`curve`.
    """
    at = bisect_left(points, (size,))
    if at in (0, len(points)):
        return curve(points, size)
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    share = (size - x0) / (x1 - x0)
    return size / ((1 - share) * x0 / y0 + share * x1 / y1)
