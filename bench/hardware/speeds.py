"""How fast one rank's device, its host and its links are, and what an operation takes by that.

Roofline for compute (Williams et al., doi 10.1145/1498765.1498785): an operation takes as long as
its FLOPs or its bytes, whichever is longer. A collective takes the bytes that a rank sends over a
bus bandwidth that depends on the message's size, as NVIDIA's nccl-tests define both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import ceil, exp, inf, log
from typing import Any

from bench.meters.traffic import COLLECTIVES
from bench.simulator.program import HOOKS, HOST, TO_DEVICE, TO_HOST, Op

Points = tuple[tuple[float, float], ...]
"""(x, y) of a curve, x ascending; what is between them, :func:`curve` and :func:`bandwidth` say."""
_TILE = 128, 256
"""Rows and columns of the output that one multiprocessor computes at a time in large matmuls
(NVIDIA, Matrix Multiplication Background User's Guide, "Tile Quantization")."""


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

    def rate(self, op: Op) -> float:
        """At which an operation computes."""
        _, _, keys, _, causal = op.sizes
        if op.kind == "attention_forward":
            points = self.forward if causal else self.whole_forward or self.forward
        else:
            points = self.backward if causal else self.whole_backward or self.backward
        return curve(points, keys)


@dataclass(frozen=True, kw_only=True)
class Link:
    """The bus bandwidth of collectives by the size of their messages.

    Attributes:
        collective: Which one; empty for all.
        ranks: Of the group it was measured on; 0 for any.
        nodes: That the group spans: 1, or more.
        stride: From one of its ranks to the next; 0 for any.
        points: (size in bytes, bytes/s), sizes as :func:`bench.meters.traffic.bytes_sent` means them.
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


@dataclass(frozen=True)
class Clock:
    """What the operations of a program take.

    Args:
        attention: The implementation of attention.
        ranks_a_node: Ranks that are neighbours in one node.
    """

    speeds: Speeds
    attention: str
    ranks_a_node: int

    def seconds(self, op: Op) -> float:
        """How long an operation takes if nobody else is in its way."""
        s = self.speeds
        if op.ranks:
            return self._collective_s(op)
        if op.kind == HOOKS:
            return s.hooks_s
        if op.kind == HOST:
            return op.bytes / s.host_memory_bytes_per_s
        if op.kind in (TO_HOST, TO_DEVICE):
            return op.bytes / (
                s.to_host_bytes_per_s if op.kind == TO_HOST else s.to_device_bytes_per_s
            )
        memory = s.silu if s.silu and op.name.startswith("aten::silu") else s.memory
        return max(self._flops_s(op), op.bytes / curve(memory, op.bytes))

    def skew_s(self, op: Op, apart_s: float) -> float:
        """What a collective takes more because its ranks met so long ago."""
        return curve(self.speeds.skew, apart_s) if op.ranks and self.speeds.skew else 0.0

    def bus(self, op: Op) -> str:
        """What an operation shares with others that run at the same time; empty if nothing."""
        if op.ranks:
            return "network" if self._nodes(op.ranks) > 1 else "links"
        return op.kind if op.kind in (TO_HOST, TO_DEVICE) else ""

    def _flops_s(self, op: Op) -> float:
        if op.kind == "matmul":
            rows, columns, inner = op.sizes
            return op.flops / self._matmul_rate(rows, columns, inner)
        if op.kind.startswith("attention"):
            return op.flops / self.speeds.attention[self.attention].rate(op)
        return 0.0

    def _matmul_rate(self, *sizes: int) -> float:
        """By the distance of shapes in log space (Shepard's interpolation, doi
        10.1145/800186.810616); of what rounds of tiles leave idle the rest."""
        weights = rates = 0.0
        for *known, rate in self.speeds.matmul:
            distance = sum(log(a / b) ** 2 for a, b in zip(sizes, known, strict=True))
            weight = 1 / (distance**2 + 1e-9)
            weights, rates = weights + weight, rates + weight * log(rate)
        rate = exp(rates / weights)
        if not self.speeds.multiprocessors:
            return rate
        tiles = sizes[0] / _TILE[0] * (sizes[1] / _TILE[1])
        whole = ceil(sizes[0] / _TILE[0]) * ceil(sizes[1] / _TILE[1])
        rounds = ceil(whole / self.speeds.multiprocessors)
        return rate * tiles / (rounds * self.speeds.multiprocessors)

    def _collective_s(self, op: Op) -> float:
        size, nodes = op.sizes[0], self._nodes(op.ranks)
        measured = [link for link in self.speeds.links if _suits(link, op, nodes)]
        if measured:
            return op.bytes / bandwidth(self._nearest(measured, op).points, size)
        inside = self._fewest_in_a_node(op.ranks)
        network = bandwidth(self.speeds.network_bytes_per_s, size)
        if op.kind in ("all_to_all", "p2p"):
            # What leaves the node does so through each rank's own share of the network.
            outside = (len(op.ranks) - inside) / (len(op.ranks) - 1)
            return op.bytes * (outside if op.kind == "all_to_all" else 1) / network
        # NCCL's rings pass a node through the network cards of all its members at once.
        together = inside * network
        within = [link for link in self.speeds.links if _suits(link, op, 1)]
        if within and inside > 1:
            together = min(together, bandwidth(self._nearest(within, op).points, size))
        return op.bytes / together

    def knows(self, ranks: int) -> bool:
        """Whether collectives of a world of so many ranks have a speed."""
        nodes = -(-ranks // self.ranks_a_node)
        of_link = {link.nodes > 1 for link in self.speeds.links}
        across = True in of_link or bool(self.speeds.network_bytes_per_s)
        return ranks == 1 or (across if nodes > 1 else False in of_link)

    def _nearest(self, links: list[Link], op: Op) -> Link:
        """Of the very collective if there is one, then of the most alike group."""
        ranks, stride = len(op.ranks), op.ranks[1] - op.ranks[0]

        def unlike(link: Link) -> tuple[bool, float, float]:
            as_many, as_far = (link.ranks or ranks) / ranks, (link.stride or stride) / stride
            return not link.collective, abs(log(as_many)), abs(log(as_far))

        return min(links, key=unlike)

    def _nodes(self, ranks: tuple[int, ...]) -> int:
        return len({rank // self.ranks_a_node for rank in ranks})

    def _fewest_in_a_node(self, ranks: tuple[int, ...]) -> int:
        return min(Counter(rank // self.ranks_a_node for rank in ranks).values())


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


def _suits(link: Link, op: Op, nodes: int) -> bool:
    same = link.collective in ("", op.kind)
    return same and (link.nodes > 1) == (nodes > 1)


def from_yaml(given: dict[str, Any]) -> Speeds:
    """Speeds from plain lists and numbers.

    Raises:
        TypeError, ValueError, KeyError: what is given is not that.
    """
    given = dict(given)
    given["matmul"] = tuple(_row(row, 4) for row in given["matmul"])
    given["attention"] = {
        name: Attention(
            forward=_points(a["forward"]),
            backward=_points(a["backward"]),
            **{whole: _points(a[whole]) for whole in _WHOLE if a.get(whole)},
        )
        for name, a in _attentions(given["attention"])
    }
    given["memory"] = _points(given["memory"])
    for name in ("network_bytes_per_s", "silu", "skew"):
        given[name] = _points(given[name]) if given.get(name) else ()
    given["links"] = tuple(_link(link) for link in given.get("links", ()))
    if not given.get("hooks_s"):
        given.pop("hooks_s", None)
    for name in _NUMBERS & given.keys():
        given[name] = _row([given[name]], 1)[0]
    rounds = given.get("multiprocessors", 0)
    if not isinstance(rounds, int) or rounds < 0:
        raise ValueError(f"multiprocessors is {rounds!r}; it must be a whole number")
    if not given["matmul"] or not given["attention"]:
        raise ValueError("matmul and attention must have at least one rate")
    return Speeds(**given)


_WHOLE = "whole_forward", "whole_backward"
_WAYS = {field.name for field in fields(Attention)}
_NUMBERS = {
    *("peak_flops_per_s", "issue_s", "hooks_s", "host_memory_bytes_per_s"),
    *("to_host_bytes_per_s", "to_device_bytes_per_s"),
}


def _attentions(given: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, ways in given.items():
        if unknown := ways.keys() - _WAYS:
            listed = ", ".join(sorted(map(str, unknown)))
            raise ValueError(f"{name} has unknown {listed}; valid: {', '.join(sorted(_WAYS))}")
        yield name, ways


def _link(given: dict[str, Any]) -> Link:
    of_link: dict[str, Any] = given | {"points": _points(given["points"])}
    link = Link(**of_link)
    known = link.collective in ("", *COLLECTIVES)
    sizes = link.ranks, link.nodes, link.stride
    whole = all(type(size) is int for size in sizes)
    if not known or not whole or link.ranks < 0 or link.nodes < 1 or link.stride < 0:
        raise ValueError(
            f"a link of {link.collective!r}, {link.ranks!r} ranks, {link.nodes!r} nodes, stride "
            f"{link.stride!r} is none; valid: {', '.join(COLLECTIVES)} or '', 0 ranks or more, "
            "1 node or more, stride 0 or more"
        )
    return link


def _row(given: Any, length: int) -> tuple[Any, ...]:
    """So many finite numbers above 0."""
    numbers = tuple(float(x) for x in given)
    if len(numbers) != length or not all(0 < x < inf for x in numbers):
        raise ValueError(f"{given} must be {length} finite numbers above 0")
    return numbers


def _points(given: Any) -> Points:
    points = tuple(_row(point, 2) for point in given)
    if not points or list(points) != sorted(points):
        raise ValueError(f"{given} is no curve: points (x, y), x ascending")
    return points
