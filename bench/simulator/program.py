"""One rank's step as its host issues it: operations, their streams, and who waits for whom.

A dry run on the meta device has the streams and events that FSDP2, rings and offloading ask a GPU
for; here they remember what was queued where. On a CPU the host computes by itself, and only
collectives run beside it.
"""

from __future__ import annotations

from typing import NamedTuple

HOST = "host"
HOOKS = "hooks"
TO_HOST, TO_DEVICE = "to_host", "to_device"


class Op(NamedTuple):
    """One operation.

    Attributes:
        name: As PyTorch's dispatcher has it.
        kind: matmul, attention_forward, attention_backward, elementwise (all else that a device
            computes), host (the same on the host), hooks (what ZeRO's engine does on the host for
            the collective that follows), to_host, to_device, or a collective.
        stream: Where it is queued; HOST if the host itself does it.
        after: Indices of operations that must have ended before, besides those of its stream.
        flops: Of a matmul or attention.
        bytes: Read and written; of a collective, sent.
        sizes: As :class:`bench.meters.flops.Kernel`; of a collective, its size in bytes.
        ranks: Of a collective's group.
        unit: The ZeRO unit that it belongs to.
        purpose: Of a collective.
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
    """The host goes on when these operations have ended."""

    after: tuple[int, ...]


Program = list[Op | Wait]
