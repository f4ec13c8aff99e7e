"""The order of a step on the GPU's streams, as the host asks for it."""

from __future__ import annotations

from typing import Any

from bench.simulator.program import HOST, TO_DEVICE, TO_HOST, Op, Program, Wait

_MOVES = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "p2p", TO_HOST, TO_DEVICE)


def ended_before(program: Program) -> list[set[int]]:
    """Return, for every operation, those that have surely ended when it begins.

    The host's own operations, and its waits, put everything that is issued later after them.
    """
    found: list[set[int]] = []
    by_stream: dict[str, set[int]] = {}
    host: set[int] = set()
    for index, op in enumerate(program):
        if isinstance(op, Wait):
            host = host.union(*(found[at] | {at} for at in op.after))
            found.append(host)
            continue
        before = host.union(by_stream.get(op.stream, ()), *(found[at] | {at} for at in op.after))
        found.append(before)
        if op.stream == HOST:
            host = before | {index}
        by_stream[op.stream] = before | {index}
    return found


def order(program: Program) -> list[tuple[Any, ...]]:
    """Return what must have ended before what.

    Kernels are left out: a dry run has others. What stays are collectives and copies of more than a
    number, by kind, purpose and bytes, each with the numbers of those that have ended before it.
    """
    before = ended_before(program)
    numbers: dict[int, int] = {}
    found: list[tuple[Any, ...]] = []
    for index, op in enumerate(program):
        if isinstance(op, Op) and op.kind in _MOVES and (op.purpose or op.bytes > 8):
            after = sorted(numbers[at] for at in before[index] & numbers.keys())
            found.append((op.kind, op.purpose, int(op.bytes), after))
            numbers[index] = len(numbers)
    return found
