"""One rank's step as its host issues it: operations, their streams, and who waits for whom.

A dry run on the meta device has the streams and events that FSDP2, rings and offloading ask a GPU
for; here they remember what was queued where. On a CPU the host computes by itself, and only
collectives run beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch._ops import OpOverload

from bench.meters.flops import kernel_of
from bench.meters.memory import MemoryMeter
from bench.meters.traffic import Call, call_of
from bench.meters.watcher import Watcher

HOST = "host"
HOOKS = "hooks"
TO_HOST, TO_DEVICE = "to_host", "to_device"
_COPIES = ("aten::copy_", "aten::clone", "aten::_to_copy")
# Operations that only allocate or look at tensors.
_FREE = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::resize_", "c10d::")


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


class Stream:
    """Operations one after another; what the next one waits for besides."""

    def __init__(self, device: Device, priority: int = 0) -> None:
        self.device, self.name = device, f"stream {next(device.numbers)}"
        self.waits: set[int] = set()
        self.last: set[int] = set()

    def record_event(self) -> Event:
        event = Event(self.device)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self.waits |= event.after

    def wait_stream(self, stream: Stream) -> None:
        self.waits |= stream.waits | stream.last


class Event:
    """All that was queued on a stream when it was recorded."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.after: set[int] = set()

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self.device.current
        self.after = stream.waits | stream.last

    def synchronize(self) -> None:
        self.device.host_waits(self.after)


class Device:
    """A device without values, and what its host has told it to do since :meth:`start`.

    Attributes:
        has_streams: Whether it computes beside the host, as GPUs do.
        program: What was issued; an operation's index is its place here.
    """

    def __init__(self, has_streams: bool) -> None:
        self.has_streams = has_streams
        self.numbers: Iterator[int] = iter(range(2**62))
        self.program: Program = []
        self.recording = False
        self.current = Stream(self)
        self._of_groups: dict[tuple[int, ...], Stream] = {}
        self._works: dict[int, tuple[dist.Work, set[int]]] = {}

    def module(self) -> SimpleNamespace:
        """What ``torch.cuda`` is to a GPU."""
        found = SimpleNamespace(**vars(torch.cpu) | {"current_device": lambda: 0})
        if self.has_streams:
            found.Stream, found.Event = partial(Stream, self), partial(Event, self)
            found.current_stream = lambda device=None: self.current
            found.stream = self._on
        return found

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def queue(self, stream: Stream | None, **of_op: Any) -> int:
        """Add an operation to a stream, or to what the host does; its index."""
        index = len(self.program)
        after, name = (), HOST
        if stream is not None:
            after, name = tuple(stream.waits - stream.last), stream.name
            stream.waits, stream.last = set(), {index}
        self.program.append(Op(stream=name, after=after, **of_op))
        return index

    def collective(self, work: dist.Work | None, is_async: bool, **of_op: Any) -> None:
        """Add a collective: to its group's own stream if the caller goes on meanwhile, else where
        the caller is, as NCCL's process groups do (ProcessGroupNCCL.cpp). A CPU has threads."""
        stream = self.current
        if is_async or not self.has_streams:
            ranks = of_op["ranks"]
            stream = self._of_groups.setdefault(ranks, Stream(self))
            stream.wait_stream(self.current)
        index = self.queue(stream, **of_op)
        if work is not None:
            self._works[id(work)] = work, {index}

    def hooks(self, unit: str) -> None:
        """What ZeRO's engine does before a collective of a unit: Python, no operation."""
        self.queue(None, name=HOOKS, kind=HOOKS, unit=unit)

    def waited(self, work: dist.Work) -> None:
        """A collective was waited for: by the current stream, or by a host that computes itself."""
        _, after = self._works.pop(id(work), (None, set()))
        if self.has_streams:
            self.current.waits |= after
        else:
            self.host_waits(after)

    def host_waits(self, after: set[int]) -> None:
        """The host waits for these."""
        if self.recording and after:
            self.program.append(Wait(tuple(after)))

    @contextmanager
    def works(self) -> Iterator[None]:
        """While the fake process group's handles tell when they are waited for."""
        wait = FakeWork.wait

        def told(work: FakeWork) -> bool:
            self.waited(work)
            return wait(work)

        with patch.object(FakeWork, "wait", told):
            yield


class Recorder(Watcher):
    """Writes a device's program while it is entered.

    Args:
        memory: A meter that has been entered before, to tell what lies in host memory.
    """

    def __init__(self, device: Device, memory: MemoryMeter) -> None:
        super().__init__()
        self.device, self.memory = device, memory

    def __enter__(self) -> Recorder:
        self.device.recording = True
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self.device.recording = False
        super().__exit__(*exception)

    def observe(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        name = func.name()
        if call := call_of(func, args, self.region):
            if len(call.ranks) > 1:
                self._collective(name, call, result)
            return
        if func.is_view or name.startswith(_FREE):
            return
        read, written = _tensors(func, args, kwargs, result)
        moved = sum(map(_bytes, read)) + sum(map(_bytes, written))
        if moved:
            of_op = {"name": name, "kind": "elementwise", "bytes": moved, "unit": self.unit}
            if kernel := kernel_of(name, args):
                of_op |= {"kind": kernel.kind, "flops": kernel.flops, "sizes": kernel.sizes}
            self._compute(of_op, read, written, blocking=len(args) < 3 or args[2] is not True)

    def _collective(self, name: str, call: Call, result: Any) -> None:
        if call.purpose in ("parameter", "gradient"):
            self.device.hooks(self.unit)
        self.device.collective(
            _work(result),
            call.is_async,
            name=name,
            kind=call.collective,
            bytes=float(call.bytes_sent),
            sizes=(call.size_bytes,),
            ranks=call.ranks,
            unit=self.unit,
            purpose=call.purpose,
        )

    def _compute(
        self, of_op: dict[str, Any], read: list[Tensor], written: list[Tensor], blocking: bool
    ) -> None:
        """What is no collective: on the device, on the host, or a copy between the two."""
        device, on_host = self.device, self.memory.on_host
        from_host = device.has_streams and any(map(on_host, read))
        to_host = device.has_streams and any(map(on_host, written))
        if not (from_host or to_host):
            device.queue(device.current if device.has_streams else None, **of_op)
        elif from_host == to_host or of_op["name"] not in _COPIES:
            device.queue(None, **of_op | {"kind": HOST})
        else:
            kind = TO_HOST if to_host else TO_DEVICE
            copied = {"kind": kind, "bytes": sum(map(_bytes, written))}
            index = device.queue(device.current, **of_op | copied)
            if blocking and of_op["name"] == "aten::copy_":
                device.host_waits({index})


def _work(result: Any) -> dist.Work | None:
    """The handle in a c10d operation's result."""
    boxed = result[1] if isinstance(result, tuple) else result
    return dist.Work.unbox(boxed) if boxed is not None else None


def _tensors(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """What an operation reads, and what it writes."""
    if func.name() == "fsdp::all_gather_copy_in":  # its schema does not say what it writes
        return _flat([args[0]]), [result[0]]
    places, names, overwritten, makes = _effects(func)
    written = _flat([args[at] for at in places] + [kwargs[n] for n in names if n in kwargs])
    read = args if not overwritten else [a for at, a in enumerate(args) if at not in places]
    return _flat(read), written + (_flat([result]) if makes else [])


@cache
def _effects(func: OpOverload) -> tuple[tuple[int, ...], tuple[str, ...], bool, bool]:
    """The arguments that an operation writes, by place and by name; whether it does so without
    reading them; whether its results are new."""
    written = [
        (at, argument)
        for at, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    places = tuple(at for at, argument in written if not argument.kwarg_only)
    names = tuple(argument.name for _, argument in written if argument.kwarg_only)
    overwrites = func.name() in ("aten::copy_", "aten::zero_", "aten::fill_.Scalar")
    return places, names, overwrites, not written


def _flat(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _flat(value)
    return found


def _bytes(x: Tensor) -> int:
    """What is read of a tensor: of an expanded one, what there is."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
