"""How fast one rank's device, its host and its links are, and what an operation takes by that.

Roofline for compute (Williams et al., doi 10.1145/1498765.1498785): an operation takes as long as
its FLOPs or its bytes, whichever is longer. A collective takes the bytes that a rank sends over a
bus bandwidth that depends on the message's size, as NVIDIA's nccl-tests define both.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import log

Points = tuple[tuple[float, float], ...]
"""(x, y) of a curve, x ascending; what is between them, :func:`curve` and :func:`bandwidth` say."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """FLOP/s of one attention kernel by the number of keys.

    Attributes:
        forward: Of causal attention; `backward` too.
        whole_forward: Of a block of keys that every query sees, as most of a ring's are, and
            `whole_backward`; as causal ones if empty. A kernel masks whole tiles of keys: where
            one is as long as the sequence, causal attention takes as long as the whole.
    """

    forward: Points
    backward: Points
    whole_forward: Points = ()
    whole_backward: Points = ()


@dataclass(frozen=True, kw_only=True)
class Link:
    """The bus bandwidth of collectives by the size of their messages.

    Attributes:
        collective: Which one; empty for all.
        ranks: Of the group it was measured on; 0 for any.
        nodes: That the group spans: 1, or more.
        stride: From one of its ranks to the next; 0 for any.
        points: (size in bytes, bytes/s), sizes as :func:`bench.meters.traffic.bytes_sent` defines
            them.
    """

    collective: str = ""
    ranks: int = 0
    nodes: int = 1
    stride: int = 0
    points: Points


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Of one rank's device, unless said otherwise.

    Attributes:
        peak_flops_per_s: What MFU is a fraction of.
        issue_s: Seconds that the host takes for one operation, besides computing.
        hooks_s: And for each of ZeRO's gathers and reductions, in its engine's hooks.
        multiprocessors: That share the tiles of a matmul in whole rounds; 0 if its shapes say all.
        matmul: (rows, columns, inner size, FLOP/s) of matmuls; the nearest ones count.
        attention: By implementation.
        memory: Bytes/s of operations that read and write, by the bytes they do.
        silu: Of SiLU and its backward, which take an exponential for every element; as the others
            if empty.
        host_memory_bytes_per_s: One rank's share of what its host computes with.
        to_host_bytes_per_s: Of copies from device to host; `to_device_bytes_per_s` back.
        network_bytes_per_s: Of one rank's share of the network, by the size of messages; used where
            no link was measured between nodes.
        links: Measured, after little computing; or published.
        skew: Seconds that a collective takes more, by the seconds since the ranks last met in one;
            empty where that is nothing.
    """

    peak_flops_per_s: float
    issue_s: float
    hooks_s: float = 0
    multiprocessors: int = 0
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
    """y at x: a power law between two points, as at the last one beyond it. Below the first of
    several, y falls with x, as a rate does where time is all latency."""
    (lowest, y), (_, highest_y) = points[0], points[-1]
    at = bisect_left(points, (x,))
    if at == len(points):
        return highest_y
    if at == 0:
        return y * max(x, 1e-9) / lowest if len(points) > 1 else y
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    return y0 * (y1 / y0) ** (log(x / x0) / log(x1 / x0))


def bandwidth(points: Points, size: float) -> float:
    """Bytes/s of a message: time is linear in its size between two points, a latency and a rate
    (Hockney, doi 10.1016/S0167-8191(06)80021-9); beyond the ends as :func:`curve`."""
    at = bisect_left(points, (size,))
    if at in (0, len(points)):
        return curve(points, size)
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    share = (size - x0) / (x1 - x0)
    return size / ((1 - share) * x0 / y0 + share * x1 / y1)
