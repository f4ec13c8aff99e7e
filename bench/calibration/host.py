"""Measure a host's overhead: its time without computing.

Per operation that is Python and autograd; per gather or reduction it is the hooks of ZeRO's engine.
Beside a GPU it is all of the host's time.
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

from bench.calibration.stopwatch import own_s, reduce_over_ranks
from bench.meters.memory import MemoryMeter
from bench.simulator.device import Device
from bench.simulator.program import HOOKS, Op
from bench.simulator.recorder import Recorder
from methods import method_of
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.io.text import Samples
from odysseus.parallel.mesh import Axis, Mesh
from odysseus.training.build import Build, build_model, build_unsharded
from odysseus.training.trainer import Trainer

_TOKENS = 1024
"""Tokens of the step. Its tensors evict Python from a core's caches, as cells do; in a step of
8 tokens the overhead is two thirds."""
_TURNS = 15
"""Number of times that both steps are measured, in turn."""
_HOOKED = "FSDP::all_gather", "FSDP::post_backward_reduce"
"""Regions of FSDP2 around gathers and reductions."""


class _Inside(TorchDispatchMode):
    """Measures seconds in operations, with their allocations, and counts ZeRO's collectives.

    A watcher cannot time operations: it sees an operation only after its end.
    """

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
    """A step of a small model; every rank has all tokens, and sends nothing.

    Attributes:
        ops: Number of operations that it issues, without hooks.
        hooked: Number of ZeRO's gathers and reductions; on one rank, of reductions only.
    """

    def __init__(self, mesh: Mesh, build: Build) -> None:
        run = RunConfig(model=ModelOptions(num_hidden_layers=2), seq_len=_TOKENS)
        self.device = mesh.device
        self.trainer = Trainer(run, method_of(run.method), mesh, build=build)
        self.batches = Samples(run, 0, 0, mesh.device).step(0)
        self.once()  # the first step makes the optimizer's state
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
        """Return a step's seconds on the host without computing, the mean over ranks."""
        taken_s = own_s(self.once, 1, self.device)
        if self.device.type == "cpu":
            with _Inside() as inside:
                own_s(self.once, 1, self.device)
            taken_s -= inside.seconds
        return reduce_over_ranks(taken_s, fmean)


def measure(device: torch.device) -> tuple[float, float]:
    """Return the host's seconds per operation, and per gather or reduction of ZeRO's."""
    return split(*_steps(device))


def _steps(device: torch.device) -> tuple[_Step, _Step]:
    """Return the steps without ZeRO, and with ZeRO over all ranks."""
    own, _ = dist.new_subgroups(1, backend="fake")
    assert isinstance(own, dist.ProcessGroup), "every rank is in one of them"
    everyone = dist.new_group(backend="fake")
    assert isinstance(everyone, dist.ProcessGroup), "of every rank"
    axis, line = Axis(own, "activation"), DeviceMesh.from_group(everyone, device.type)
    mesh = Mesh(device, 0, axis, axis, axis, axis, axis, uncut_mesh=line, full_mesh=line)
    return _Step(mesh, build_unsharded), _Step(mesh, build_model)


def split(plain: _Step, zero: _Step) -> tuple[float, float]:
    """Derive both overheads from the steps without and with ZeRO: medians over turns."""
    issue, hooks = [], []
    for _ in range(_TURNS):
        plain_s, zero_s = plain.host_s(), zero.host_s()
        issue.append(plain_s / plain.ops)
        hooks.append((zero_s - zero.ops * issue[-1]) / zero.hooked)
    return max(median(issue), 1e-7), max(median(hooks), 1e-7)  # less is noise
