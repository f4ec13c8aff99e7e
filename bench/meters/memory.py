"""The memory meter: live tensor storage over a step, its peak, and what was alive at it.

A dispatch mode sees every new tensor; a weak reference sees it freed. Every storage is logged with
its kind, which may be learned later (a tensor turns out to be a gradient when the optimizer takes
it). The peak is found by replaying the log.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._ops import OpOverload
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.utils._pytree import tree_leaves

from bench.meters.watcher import Watcher
from odysseus.parallel import gloo_threads

KINDS = ("parameters", "gradients", "optimizer", "activations", "communication")
_BEFORE = "before the step"
"""Value of `made_by` for storages that :meth:`MemoryMeter.watch` names before the step."""
HOST = "host"
"""Kind of tensors that offloading holds: host memory, so no part of a device's peak."""


@dataclass
class Allocation:
    """One storage: its bytes, its kind, the operation that made it and the ZeRO unit of that."""

    bytes: int
    kind: str
    made_by: str
    unit: str


@dataclass(frozen=True)
class Peak:
    """The most bytes alive at once, by kind, and the allocations alive then, largest first.

    Attributes:
        last: The allocation that reached the peak; None if nothing was allocated.
    """

    bytes: int
    by_kind: dict[str, int]
    alive: list[Allocation]
    last: Allocation | None


@dataclass(frozen=True)
class Course:
    """Bytes alive over a step.

    Attributes:
        events: Number of allocations and releases of the step.
        at: Numbers of events, rising; 0 is the beginning of the step.
        bytes: Bytes by kind after each of these events.
    """

    events: int
    at: list[int]
    bytes: dict[str, list[int]]


class MemoryMeter(Watcher):
    """Follows tensor storage while it is entered.

    Kinds:

    - *parameters*, *optimizer* and inputs: named by :meth:`watch`;
    - *communication*: tensors that FSDP2 gathers and reduces; inside blocks, tensors that a method
      gathered (also those it keeps, ``--regather false``) or is about to reduce-scatter, and
      tensors sent around a ring;
    - *gradients*: those of parameters, whole and sharded;
    - *activations*: everything else.

    The kernels' own workspace and gloo's buffers are not counted.

    Args:
        rounding_bytes: The device's allocator rounds every size up to a multiple of this.
    """

    def __init__(self, rounding_bytes: int = 1) -> None:
        super().__init__()
        self.rounding_bytes = rounding_bytes
        self._log: list[tuple[int, bool]] = []
        self._end = 0
        self._allocations: list[Allocation] = []
        self._live: dict[int, tuple[int, Any]] = {}
        self._on_gloo = False

    def watch(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count these tensors as this kind from now on, also tensors new to the meter."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            index = self._index(storage)
            if index is None:
                self._add(storage, kind, _BEFORE)
            else:
                self._allocations[index].kind = kind

    @property
    def events(self) -> int:
        """Allocations and releases so far."""
        return len(self._log)

    def peak(self, *kinds: str, between: tuple[int, int] | None = None) -> Peak:
        """Replay the log and return the peak of these kinds; by default of all but HOST.

        Args:
            between: Two counts of events between which it is; by default all that was seen.
        """
        first, end = between or (0, len(self._log))
        alive: set[int] = set()
        best: set[int] = set()
        now = most = 0
        last = None
        for event, (index, made) in enumerate(self._log[:end], 1):
            if self._allocations[index].kind not in (kinds or KINDS):
                continue
            size = self._bytes(index)
            if made:
                alive.add(index)
                now += size
            else:
                alive.remove(index)
                now -= size
            if event >= first and now > most:
                most, best, last = now, set(alive), self._allocations[index]
        by_kind: Counter[str] = Counter()
        for index in best:
            by_kind[self._allocations[index].kind] += self._bytes(index)
        held = sorted((self._allocations[i] for i in best), key=lambda a: -a.bytes)
        return Peak(most, {kind: by_kind[kind] for kind in KINDS}, held, last)

    def peak_by_unit(self) -> dict[str, int]:
        """Return the most bytes alive in each ZeRO unit: while it was the unit that began last."""
        peaks: dict[str, int] = {}
        now = 0
        for index, made in self._log:
            allocation = self._allocations[index]
            if allocation.kind == HOST:
                continue
            now += self._bytes(index) if made else -self._bytes(index)
            if made:
                peaks[allocation.unit] = max(now, peaks.get(allocation.unit, 0))
        return peaks

    def course(self, most: int = 2000) -> Course:
        """Replay the log and return the bytes over the step, without HOST.

        Args:
            most: Most points. The events are cut into equal parts; of each part the points are the
                one with the most bytes and the last one.
        """
        kinds = [allocation.kind for allocation in self._allocations]
        log = [(i, made) for i, made in self._log[: self._end] if kinds[i] != HOST]
        changes = [self._bytes(i) if made else -self._bytes(i) for i, made in log]
        before = (self._allocations[i].made_by == _BEFORE for i, _ in log)
        start = next((n for n, was_there in enumerate(before) if not was_there), len(log))
        totals = [sum(changes[:start]), *changes[start:]]
        for number in range(1, len(totals)):
            totals[number] += totals[number - 1]
        part = -(-len(totals) // max(1, most // 2))
        kept: set[int] = set()
        for first in range(0, len(totals), part):
            numbers = range(first, min(first + part, len(totals)))
            kept |= {max(numbers, key=totals.__getitem__), numbers[-1]}
        at, now = sorted(kept), Counter[str]()
        of_kind: dict[str, list[int]] = {kind: [] for kind in KINDS}
        done = 0
        for number in at:
            step = slice(done, done := start + number)
            for (index, _), change in zip(log[step], changes[step], strict=True):
                now[kinds[index]] += change
            for kind in KINDS:
                of_kind[kind].append(now[kind])
        return Course(len(totals) - 1, at, of_kind)

    def before_backward(self) -> dict[str, int]:
        """Return bytes by kind that are alive when the step's first backward begins."""
        by_kind: Counter[str] = Counter()
        for index, made in self._log:
            allocation = self._allocations[index]
            if made and allocation.unit.startswith("backward"):
                break
            by_kind[allocation.kind] += self._bytes(index) if made else -self._bytes(index)
        return dict(by_kind)

    def on_host(self, tensor: Tensor) -> bool:
        """Whether a tensor is in host memory, as far as the meter knows."""
        index = self._index(tensor.untyped_storage())
        return index is not None and self._allocations[index].kind == HOST

    def _is_activation(self, tensor: Tensor) -> bool:
        index = self._index(tensor.untyped_storage())
        return index is not None and self._allocations[index].kind == "activations"

    def _bytes(self, index: int) -> int:
        """Bytes that an allocation takes: rounded up on the device."""
        size = self._allocations[index].bytes
        if self._allocations[index].kind == HOST:
            return size
        return -(-size // self.rounding_bytes) * self.rounding_bytes

    def __enter__(self) -> MemoryMeter:
        # FSDP2 frees and refills gathered parameters by resizing their storage, which no
        # dispatch mode sees; torch's own MemTracker wraps the method in the same way.
        original = self._resize = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> None:
            kind = self._forget(storage)
            original(storage, size)
            self._add(storage, kind or "communication", "resize_")

        setattr(torch.UntypedStorage, "resize_", resize)  # noqa: B010
        # Gloo's threads hold a collective's tensors until a moment after it is done.
        wait = self._wait = dist.Work.wait

        def wait_and_settle(work: dist.Work, *timeout: Any) -> Any:
            done = wait(work, *timeout)
            gloo_threads.settle()
            return done

        self._on_gloo = dist.is_initialized() and dist.get_backend() == "gloo"
        if self._on_gloo:
            setattr(dist.Work, "wait", wait_and_settle)  # noqa: B010
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._end = len(self._log)  # what is released later is not part of the step
        setattr(torch.UntypedStorage, "resize_", self._resize)  # noqa: B010
        setattr(dist.Work, "wait", self._wait)  # noqa: B010
        super().__exit__(*exception)

    def observe(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        name = func.name()
        if self._on_gloo and (
            name == "_c10d_functional::wait_tensor"
            or any(isinstance(x, AsyncCollectiveTensor) for x in tree_leaves(args))
        ):
            gloo_threads.settle()  # the operation has waited for a collective
        if not func.is_view:  # a view of an unknown storage is one of a buffer of gloo's
            for leaf in tree_leaves(result):
                if not isinstance(leaf, Tensor) or isinstance(leaf, AsyncCollectiveTensor):
                    continue  # an asynchronous collective's wrapper has no memory of its own
                if self._index(leaf.untyped_storage()) is None:
                    self._add(leaf.untyped_storage(), self._kind_of(leaf), name)
        if self.region == "odysseus::edge":
            return
        if name == "c10d::_allgather_base_":
            self.watch([args[0]], "communication")
        elif name in ("c10d::send", "c10d::recv_"):
            self.watch(args[0], "communication")
        elif name == "c10d::broadcast_":  # of parameters that their owner sends as they are
            self.watch((t for t in args[0] if self._is_activation(t)), "communication")
        elif name == "c10d::_reduce_scatter_base_":
            self.watch([args[1]], "communication")
        elif name == "fsdp::chunk_cat":
            self.watch(args[0], "gradients")

    def _kind_of(self, tensor: Tensor) -> str:
        """Return the kind of a tensor that has just been made, as far as is known now."""
        if self.region.startswith("FSDP::"):
            return "communication"
        if self.region == "odysseus::host":
            return HOST
        return "optimizer" if self.region.startswith("Optimizer.step") else "activations"

    def _index(self, storage: torch.UntypedStorage) -> int | None:
        known = self._live.get(storage._cdata)
        return None if known is None else known[0]

    def _add(self, storage: torch.UntypedStorage, kind: str, made_by: str) -> None:
        index, key = len(self._allocations), storage._cdata
        self._allocations.append(Allocation(storage.nbytes(), kind, made_by, self.unit))
        self._log.append((index, True))

        def freed(_: Any) -> None:
            if self._live.get(key, (None,))[0] == index:
                del self._live[key]
                self._log.append((index, False))

        self._live[key] = (index, weakref.ref(storage, freed))

    def _forget(self, storage: torch.UntypedStorage) -> str | None:
        known = self._live.pop(storage._cdata, None)
        if known is None:
            return None
        self._log.append((known[0], False))
        return self._allocations[known[0]].kind
