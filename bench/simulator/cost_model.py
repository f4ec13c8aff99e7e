"""The cost model: seconds of one operation of a program on a profile's device, host and links.

Compute follows a roofline (Williams et al., doi 10.1145/1498765.1498785): the time of an operation
is that of its FLOPs or that of its bytes, whichever is longer. The time of a collective is the
bytes that a rank sends over the bus bandwidth, which depends on the message's size as in
nccl-tests.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import exp, log

from bench.hardware.speeds import Link, Speeds, bandwidth, curve
from bench.simulator.program import HOOKS, HOST, TO_DEVICE, TO_HOST, Op
from bench.simulator.tiles import attention_share, matmul_s

_DEVICE = "device"
"""The bus of a GPU's kernels: those of several streams share it."""


@dataclass(frozen=True)
class Clock:
    """Clock of a program's operations on one profile.

    Args:
        speeds: Speeds of the profile.
        attention: Name of the attention kernel.
        ranks_per_node: Ranks of one node; nodes are filled in order.
    """

    speeds: Speeds
    attention: str
    ranks_per_node: int

    def seconds(self, op: Op) -> float:
        """Return the seconds of an operation that shares no link with another."""
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

    def host_s(self, op: Op) -> float:
        """Return the seconds for which an operation holds up the host."""
        issue_s = 0.0 if op.kind == HOOKS else self.speeds.issue_s
        return issue_s + (self.seconds(op) if op.stream == HOST else 0.0)

    def skew_s(self, op: Op, apart_s: float) -> float:
        """Return a collective's extra seconds, given the seconds since its ranks last met."""
        return curve(self.speeds.skew, apart_s) if op.ranks and self.speeds.skew else 0.0

    def bus(self, op: Op) -> str:
        """Name the bus that an operation shares with simultaneous ones; empty if none."""
        if op.ranks:
            return "network" if self._nodes(op.ranks) > 1 else "links"
        if op.kind in (TO_HOST, TO_DEVICE):
            return op.kind
        return "" if op.stream == HOST else _DEVICE

    def beside_a_collective(self, op: Op) -> float:
        """Return how many times as long an operation takes while a collective runs, whose kernel
        occupies multiprocessors that matmuls and attention would use."""
        taken, cores = self.speeds.collective_multiprocessors, self.speeds.multiprocessors
        return cores / (cores - taken) if cores and op.flops else 1.0

    def _flops_s(self, op: Op) -> float:
        if not op.flops:  # a matmul of no rows
            return 0.0
        if op.kind == "matmul":
            rows, columns, inner = op.sizes
            rate, cores = self._matmul_rate(rows, columns, inner), self.speeds.multiprocessors
            return matmul_s(rows, columns, inner, rate, cores) if cores else op.flops / rate
        if op.kind.startswith("attention"):
            return op.flops / self._attention_rate(op)
        return 0.0

    def _attention_rate(self, op: Op) -> float:
        """Return the FLOP/s of the kernel at an attention operation."""
        heads, queries, keys, _, causal = op.sizes
        known, forward = self.speeds.attention[self.attention], op.kind == "attention_forward"
        if forward:
            points = known.forward if causal else known.whole_forward or known.forward
        else:
            points = known.backward if causal else known.whole_backward or known.backward
        rows = known.rows_forward if forward else known.rows_backward
        cores = self.speeds.multiprocessors
        cut = queries if forward else keys
        share = attention_share(heads, cut, bool(causal), rows, cores)
        return curve(points, keys) * share

    def _matmul_rate(self, *sizes: int) -> float:
        """Return FLOP/s by interpolation between measured shapes, by their distance in log space
        (Shepard, doi 10.1145/800186.810616)."""
        weights = rates = 0.0
        for *known, rate in self.speeds.matmul:
            distance = sum(log(a / b) ** 2 for a, b in zip(sizes, known, strict=True))
            weight = 1 / (distance**2 + 1e-9)
            weights, rates = weights + weight, rates + weight * log(rate)
        return exp(rates / weights)

    def _collective_s(self, op: Op) -> float:
        size, nodes = op.sizes[0], self._nodes(op.ranks)
        measured = [link for link in self.speeds.links if _suits(link, op, nodes)]
        if measured:
            # A broadcast's bytes are the mean of the ranks; it lasts for those of a rank that sends
            # all of it on.
            sent = size if op.kind in _LINKS_OF else op.bytes
            return sent / bandwidth(self._nearest(measured, op).points, size)
        inside = self._fewest_per_node(op.ranks)
        network = bandwidth(self.speeds.network_bytes_per_s, size)
        if op.kind in ("all_to_all", "p2p"):
            # Bytes to other nodes go through each rank's own share of the network.
            outside = (len(op.ranks) - inside) / (len(op.ranks) - 1)
            return op.bytes * (outside if op.kind == "all_to_all" else 1) / network
        # NCCL's rings use the network cards of all members in a node at once.
        together = inside * network
        within = [link for link in self.speeds.links if _suits(link, op, 1)]
        if within and inside > 1:
            together = min(together, bandwidth(self._nearest(within, op).points, size))
        return op.bytes / together

    def knows(self, ranks: int) -> bool:
        """Whether the speeds of collectives are known for a world of this size."""
        nodes = -(-ranks // self.ranks_per_node)
        crosses_nodes = {link.nodes > 1 for link in self.speeds.links}
        across = True in crosses_nodes or bool(self.speeds.network_bytes_per_s)
        return ranks == 1 or (across if nodes > 1 else False in crosses_nodes)

    def _nearest(self, links: list[Link], op: Op) -> Link:
        """Return the link of the same collective if there is one, and of the most similar group."""
        ranks, stride = len(op.ranks), op.ranks[1] - op.ranks[0]

        def distance(link: Link) -> tuple[bool, float, float]:
            sizes, strides = (link.ranks or ranks) / ranks, (link.stride or stride) / stride
            return not link.collective, abs(log(sizes)), abs(log(strides))

        return min(links, key=distance)

    def _nodes(self, ranks: tuple[int, ...]) -> int:
        return len({rank // self.ranks_per_node for rank in ranks})

    def _fewest_per_node(self, ranks: tuple[int, ...]) -> int:
        return min(Counter(rank // self.ranks_per_node for rank in ranks).values())


_LINKS_OF = {"broadcast": "all_gather", "reduce": "reduce_scatter"}
"""Collectives without measured links, and the collective whose links they use."""


def _suits(link: Link, op: Op, nodes: int) -> bool:
    same = link.collective in ("", _LINKS_OF.get(op.kind, op.kind))
    return same and (link.nodes > 1) == (nodes > 1)
