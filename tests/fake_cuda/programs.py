"""The order of a step on the GPU's streams, as the host asks for it."""

from __future__ import annotations

from typing import Any

from bench.simulator.program import HOST, TO_DEVICE, TO_HOST, Op, Program, Wait

_MOVES = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "p2p", TO_HOST, TO_DEVICE)


def ended_before(program: Program) -> list[int]:
    """Return, for every operation, those that have surely ended when it begins, each as a bit.

    The host's own operations, and its waits, put everything that is issued later after them.
    """
    found: list[int] = []
    by_stream: dict[str, int] = {}
    host = 0
    for index, op in enumerate(program):
        before = host if isinstance(op, Wait) else host | by_stream.get(op.stream, 0)
        for at in op.after:
            before |= found[at] | 1 << at
        found.append(before)
        if isinstance(op, Wait):
            host = before
            continue
        by_stream[op.stream] = before | 1 << index
        if op.stream == HOST:
            host = by_stream[op.stream]
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
            after = [number for at, number in numbers.items() if before[index] >> at & 1]
            found.append((op.kind, op.purpose, int(op.bytes), after))
            numbers[index] = len(numbers)
    return found
