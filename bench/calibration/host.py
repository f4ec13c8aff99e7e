"""Measuring what a host takes besides computing.

That is Python and autograd for an operation, and the hooks of ZeRO's engine for a gather or
reduction. Beside a GPU it is all of the host's time.
"""

from __future__ import annotations

import time
from statistics import fmean, median
from typing import Any

import torch
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg  # makes the backend "fake" known
from torch._ops import OpOverload
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.calibration.stopwatch import of_ranks, own_s
from bench.meters.memory import MemoryMeter
from bench.simulator.device import Device
from bench.simulator.program import HOOKS, Op
from bench.simulator.recorder import Recorder
from methods import METHODS
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.io.text import Samples
from odysseus.parallel.mesh import Axis, Mesh
from odysseus.training.trainer import Build, Trainer, build_model, build_unsharded

_TOKENS = 1024
"""Of the step. Its tensors put Python out of a core's caches, as those of the cells do; in a step
of 8 tokens it takes two thirds."""
_TURNS = 15
"""Times that both steps are measured, in turn."""
_HOOKED = "FSDP::all_gather", "FSDP::post_backward_reduce"
"""Regions of FSDP2 that gathers and reductions are in."""


class _Inside(TorchDispatchMode):
    """Seconds in operations, allocating too, and how many gathers and reductions ZeRO begins. A
    watcher could not tell the first: it sees an operation when it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.hooked = 0.0, 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if DTensor in types:
            return NotImplemented  # its own operations arrive afterwards, one by one
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        if func.name().startswith("profiler::"):
            region = str(args[0]).partition(" ")[0]
            self.hooked += region in _HOOKED
        elif not func.is_view:
            self.seconds += time.perf_counter() - start
        return result


class _Step:
    """A step of a small model; every rank has all the tokens.

    Attributes:
        ops: Operations that it issues, without hooks.
        hooked: Gathers and reductions of ZeRO's; on one rank reductions only. Nothing moves between
            ranks: that is for links to measure.
    """

    def __init__(self, mesh: Mesh, build: Build) -> None:
        run = RunConfig(model=ModelOptions(num_hidden_layers=2), seq_len=_TOKENS)
        self.device = mesh.device
        self.trainer = Trainer(run, METHODS[run.method], mesh, build=build)
        self.batches = Samples(run, 0, 0, mesh.device).step(0)
        self.once()  # the first makes the optimizer's state
        with MemoryMeter() as memory, Recorder(Device(has_streams=False), memory) as recorder:
            self.once()
        ops = (op for op in recorder.device.program if isinstance(op, Op))
        self.ops = sum(op.kind != HOOKS for op in ops)
        with _Inside() as inside:
            self.once()
        self.hooked = inside.hooked

    def once(self) -> None:
        self.trainer.step(self.batches)

    def host_s(self) -> float:
        """What one takes on the host besides computing, of all ranks the mean."""
        taken_s = own_s(self.once, 1, self.device)
        if self.device.type == "cpu":
            with _Inside() as inside:
                own_s(self.once, 1, self.device)
            taken_s -= inside.seconds
        return of_ranks(taken_s, fmean)


def measure(device: torch.device) -> tuple[float, float]:
    """Seconds for an operation, and for a gather or reduction of ZeRO's."""
    return split(*_steps(device))


def _steps(device: torch.device) -> tuple[_Step, _Step]:
    """Without ZeRO, and with it over all ranks."""
    own, _ = dist.new_subgroups(1, backend="fake")
    assert isinstance(own, dist.ProcessGroup), "every rank is in one of them"
    everyone = dist.new_group(backend="fake")
    assert isinstance(everyone, dist.ProcessGroup), "of every rank"
    axis, line = Axis(own, "activation"), DeviceMesh.from_group(everyone, device.type)
    mesh = Mesh(device, 0, axis, axis, axis, axis, axis, uncut_mesh=line, full_mesh=line)
    return _Step(mesh, build_unsharded), _Step(mesh, build_model)


def split(plain: _Step, zero: _Step) -> tuple[float, float]:
    """What the steps without and with ZeRO say of both, turn by turn."""
    issue, hooks = [], []
    for _ in range(_TURNS):
        plain_s, zero_s = plain.host_s(), zero.host_s()
        issue.append(plain_s / plain.ops)
        hooks.append((zero_s - zero.ops * issue[-1]) / zero.hooked)
    return max(median(issue), 1e-7), max(median(hooks), 1e-7)  # less is noise
