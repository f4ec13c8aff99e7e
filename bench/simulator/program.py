"""A program: one rank's step in the order its host issues it, with streams and waits.

In a dry run FSDP2, rings and offloading ask the meta device for streams and events, like a GPU;
bench/simulator/device.py records them. On a CPU the host itself computes, and only collectives run
beside it.
"""

from __future__ import annotations

from typing import NamedTuple

HOST = "host"
HOOKS = "hooks"
TO_HOST, TO_DEVICE = "to_host", "to_device"


class Op(NamedTuple):
    """One operation.

    Attributes:
        name: Name in PyTorch's dispatcher.
        kind: One of matmul, attention_forward, attention_backward, elementwise (everything else
            that a device computes), host (the same on the host), hooks (work of ZeRO's engine on
            the host, for the collective that follows), to_host, to_device, or a collective's name.
        stream: Stream that it is queued on; HOST for the host's own work.
        after: Indices of operations of other streams that must have ended before.
        flops: FLOPs of a matmul or of attention.
        bytes: Bytes read and written; for a collective, bytes sent, or received where those are
            more.
        sizes: Sizes like in :class:`bench.meters.flops.Kernel`; for a collective, its size in
            bytes.
        ranks: Ranks of a collective's group.
        unit: The ZeRO unit that it belongs to.
        purpose: Purpose of a collective.
    """

    name: str
    kind: str
    stream: str
    after: tuple[int, ...]
    flops: int = 0
    bytes: float = 0.0
    sizes: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    unit: str = ""
    purpose: str = ""


class Wait(NamedTuple):
    """Wait of the host until these operations have ended."""

    after: tuple[int, ...]


Program = list[Op | Wait]


def part(program: Program, first: int, end: int) -> Program:
    """Return the operations of a program between two indices, as a program of their own; what
    they would wait for before that has ended."""

    def of_part(after: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(at - first for at in after if at >= first)

    return [one._replace(after=of_part(one.after)) for one in program[first:end]]
