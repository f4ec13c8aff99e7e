"""A device without values: its streams and events record the program that the host issues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.simulator.program import HOOKS, HOST, Op, Program, Wait


class Stream:
    """Stream of operations in order, like ``torch.cuda.Stream``.

    Attributes:
        waits: Indices of operations of other streams that the next operation waits for.
        last: Index of the operation queued last; empty before the first.
    """

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
    """Event, like ``torch.cuda.Event``.

    Attributes:
        after: Indices of the operations that it waits for.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.after: set[int] = set()

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self.device.current
        self.after = stream.waits | stream.last

    def synchronize(self) -> None:
        self.device.host_waits(self.after)


class Device:
    """Device without values, which records its host's program.

    Attributes:
        has_streams: Whether it computes beside the host, as GPUs do.
        program: Operations issued so far; an operation is named by its index here.
        recording: Whether the host's waits are recorded.
    """

    def __init__(self, has_streams: bool) -> None:
        self.has_streams = has_streams
        self.numbers: Iterator[int] = iter(range(2**62))
        self.program: Program = []
        self.recording = False
        self.current = Stream(self)
        self._of_groups: dict[tuple[int, ...], Stream] = {}
        self._works: dict[int, tuple[dist.Work | Tensor, set[int]]] = {}

    def module(self) -> SimpleNamespace:
        """Return the counterpart of ``torch.cuda`` for this device."""
        module = SimpleNamespace(**vars(torch.cpu) | {"current_device": lambda: 0})
        if self.has_streams:
            module.Stream, module.Event = partial(Stream, self), partial(Event, self)
            module.current_stream = lambda device=None: self.current
            module.stream = self._on
        return module

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def queue(self, stream: Stream | None, **fields: Any) -> int:
        """Add an operation to a stream, or to the host's own work; return its index."""
        index = len(self.program)
        after, name = (), HOST
        if stream is not None:
            after, name = tuple(stream.waits - stream.last), stream.name
            stream.waits, stream.last = set(), {index}
        self.program.append(Op(stream=name, after=after, **fields))
        return index

    def collective(self, handle: dist.Work | Tensor | None, is_async: bool, **fields: Any) -> None:
        """Add a collective to its stream.

        That is its group's own stream if the caller continues meanwhile, else the current stream,
        like NCCL's process groups (ProcessGroupNCCL.cpp). On a CPU every group has its own threads.

        Args:
            handle: What the caller waits for: the work, or the result of a functional collective.
        """
        stream = self.current
        if is_async or not self.has_streams:
            ranks = fields["ranks"]
            stream = self._of_groups.setdefault(ranks, Stream(self))
            stream.wait_stream(self.current)
        index = self.queue(stream, **fields)
        if handle is not None:
            self._works[id(handle)] = handle, {index}

    def hooks(self, unit: str) -> None:
        """Add the Python that ZeRO's engine runs on the host before a collective of a unit."""
        self.queue(None, name=HOOKS, kind=HOOKS, unit=unit)

    def waited(self, handle: dist.Work | Tensor) -> None:
        """Note that the current stream, or a host that computes, waits for a collective."""
        _, after = self._works.pop(id(handle), (None, set()))
        if self.has_streams:
            self.current.waits |= after
        else:
            self.host_waits(after)

    def host_waits(self, after: set[int]) -> None:
        """Note that the host waits for these operations."""
        if self.recording and after:
            self.program.append(Wait(tuple(after)))
