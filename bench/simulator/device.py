"""The streams and events of a device without values, which remember what was queued where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FakeWork

from bench.simulator.program import HOOKS, HOST, Op, Program, Wait


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
