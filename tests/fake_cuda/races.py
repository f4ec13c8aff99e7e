"""Operations that do not wait for one that made, or still reads, what they use.

Streams run beside each other; what one stream writes and another uses has to be put in order by an
event, a wait of the host, or the caller of a collective. A tensor's memory is the unit: a view
shares it. Memory that is freed and taken again is not followed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from bench.meters.traffic import Call
from bench.simulator.device import Device
from bench.simulator.program import Op, Program, Wait
from bench.simulator.recorder import Recorder
from tests.fake_cuda.programs import ended_before

Uses = dict[int, tuple[list[int], list[int]]]
"""The memory that an operation reads and that it writes, by its index in the program."""


class InHostMemory:
    """Knows what is in host memory by its device; in a dry run, all tensors are on meta."""

    def on_host(self, x: Tensor) -> bool:
        return x.device.type == "cpu"


class UseRecorder(Recorder):
    """Records, beside the program of a device, what its operations use."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, InHostMemory())
        self.uses: Uses = {}
        self._kept: list[Tensor] = []  # so that no other tensor gets the same memory
        self._arguments: tuple[list[Tensor], list[Tensor]] = [], []

    def observe(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        name = func.name()
        if name.startswith("prim::"):  # fake tensors ask for their device so
            return
        if name == "c10d::recv_":  # of the same hop as the send before it
            self._use([], _tensors(args[0]), [*self.uses][-1])
        if name.startswith("c10d::"):
            first, second = map(_tensors, args[:2])
            self._arguments = second or first, [] if name == "c10d::send" else first
        super().observe(func, args, kwargs, result)

    def _collective(self, name: str, call: Call, result: Any) -> None:
        super()._collective(name, call, result)
        self._use(*self._arguments)

    def _compute(
        self, fields: dict[str, Any], read: list[Tensor], written: list[Tensor], blocking: bool
    ) -> None:
        super()._compute(fields, read, written, blocking)
        self._use(read, written)

    def _use(self, read: list[Tensor], written: list[Tensor], index: int | None = None) -> None:
        """Note what an operation uses, by default the last one of the program."""
        program = self.device.program
        if index is None:
            index = len(program) - (2 if isinstance(program[-1], Wait) else 1)
        self._kept += read + written
        for of_operation, tensors in zip(
            self.uses.setdefault(index, ([], [])), (read, written), strict=True
        ):
            of_operation += [x.untyped_storage()._cdata for x in tensors]


def _tensors(argument: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(argument) if isinstance(leaf, Tensor)]


def races(program: Program, uses: Uses) -> list[str]:
    """Return a line for each operation that does not wait for another one that it has to."""
    found = []
    before = ended_before(program)
    wrote: dict[int, int] = {}
    read: dict[int, list[int]] = {}
    for index, (reads, writes) in uses.items():
        needed = {wrote[memory] for memory in {*reads, *writes} & wrote.keys()}
        needed |= {at for memory in writes for at in read.get(memory, ())}
        for at in sorted(needed - {index}):
            if before[index] >> at & 1:
                continue
            first, second = program[at], program[index]
            assert isinstance(first, Op)
            assert isinstance(second, Op)
            found.append(f"{second.name} in {second.unit} does not wait for {first.name}")
        for memory in writes:
            wrote[memory] = index
            read[memory] = []
        for memory in reads:
            read.setdefault(memory, []).append(index)
    return found
