"""The steps of a script, by its optimizer: what one of them sends, holds and computes.

A step ends when an optimizer has updated and at least one backward has run since the last end. One
step is counted, by default the second, as the first makes the optimizer's state; a script of fewer
steps is counted whole.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from bench.meters.flops import FlopMeter
from bench.meters.memory import HOST, MemoryMeter, Peak
from bench.meters.traffic import Call, TrafficMeter
from bench.simulator.device import Device
from bench.simulator.program import Program, part
from bench.simulator.recorder import Recorder


class Enough(BaseException):
    """Ends a script after the step that is counted; no ``except Exception`` catches it."""


class GpuMemory(MemoryMeter):
    """Counts tensors of the CPU as host memory, beside a GPU."""

    def _kind_of(self, tensor: Tensor) -> str:
        return HOST if tensor.device.type == "cpu" else super()._kind_of(tensor)


class _Engine:
    """Autograd's engine, which libraries also call themselves; says when a backward begins."""

    def __init__(self, engine: Any, begin: Callable[[], None]) -> None:
        self._engine, self._begin = engine, begin

    def run_backward(self, *args: Any, **options: Any) -> Any:
        self._begin()
        return self._engine.run_backward(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@dataclass(frozen=True)
class Mark:
    """The end of a step, in each meter's record."""

    memory: int
    calls: int
    matmul: int
    attention: int
    operations: int


@dataclass(frozen=True)
class Counted:
    """A step of a script, counted.

    Attributes:
        steps: Steps that the script has ended.
        whole: Whether the script ended fewer steps and is counted whole.
        host: Peak of tensors in host memory, beside a GPU.
    """

    steps: int
    whole: bool
    calls: list[Call]
    matmul_flops: int
    attention_flops: int
    peak: Peak
    host: Peak
    program: Program


class Steps:
    """Meters of a script's steps.

    Args:
        device: Records the program of a GPU, or of a CPU.
        number: The step that is counted, from 1.
        with_program: Whether to record it, which real ranks cannot.
    """

    def __init__(self, device: Device, number: int = 2, with_program: bool = True) -> None:
        self.device, self.number, self.with_program = device, number, with_program
        self.memory = GpuMemory() if device.has_streams else MemoryMeter()
        self.traffic, self.flops = TrafficMeter(), FlopMeter()
        self._modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._marks = [self._mark()]
        self._backwards = 0

    @contextmanager
    def metered(self) -> Iterator[None]:
        """Watch all that a script does. Ends it by :class:`Enough` after the counted step."""
        with ExitStack() as stack:
            for removable in (
                register_module_parameter_registration_hook(self._registered),
                register_optimizer_step_pre_hook(self._before),
                register_optimizer_step_post_hook(self._after),
            ):
                stack.callback(removable.remove)
            engine = _Engine(Variable._execution_engine, self._begin_backward)
            stack.enter_context(patch.object(Variable, "_execution_engine", engine))
            for meter in (self.memory, self.traffic, self.flops):
                stack.enter_context(meter)
            if self.with_program:
                stack.enter_context(Recorder(self.device, self.memory))
            yield

    def counted(self) -> Counted:
        """Return the counted step."""
        self._name_parameters()
        whole = len(self._marks) <= self.number
        start, end = (self._marks[0], self._mark()) if whole else self._marks[self.number - 1 :][:2]
        window = start.memory, end.memory
        return Counted(
            steps=len(self._marks) - 1,
            whole=whole,
            calls=self.traffic.calls[start.calls : end.calls],
            matmul_flops=end.matmul - start.matmul,
            attention_flops=end.attention - start.attention,
            peak=self.memory.peak(between=window),
            host=self.memory.peak(HOST, between=window),
            program=part(self.device.program, start.operations, end.operations),
        )

    def _mark(self) -> Mark:
        return Mark(
            self.memory.events,
            len(self.traffic.calls),
            self.flops.matmul,
            self.flops.attention,
            len(self.device.program),
        )

    def _begin_backward(self) -> None:
        self._backwards += 1

    def _registered(self, module: nn.Module, name: str, parameter: Any) -> None:
        self._modules.add(module)

    def _name_parameters(self) -> None:
        for module in self._modules:
            self._watch([p for p in module._parameters.values() if p is not None], "parameters")

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        self._name_parameters()
        updated = [p for group in optimizer.param_groups for p in group["params"]]
        self._watch([p.grad for p in updated if p.grad is not None], "gradients")

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        states = [x for s in optimizer.state.values() for x in s.values() if isinstance(x, Tensor)]
        self._watch(states, "optimizer")
        if not self._backwards:
            return
        self._backwards = 0
        self._marks.append(self._mark())
        if len(self._marks) > self.number:
            raise Enough

    def _watch(self, tensors: list[Tensor], kind: str) -> None:
        local = [x.to_local() if isinstance(x, DTensor) else x.detach() for x in tensors]
        on_host = [self.device.has_streams and x.device.type == "cpu" for x in local]
        self.memory.watch([x for x, host in zip(local, on_host, strict=True) if not host], kind)
