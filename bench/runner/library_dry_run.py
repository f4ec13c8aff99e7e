"""The dry run of a step that libraries compute: a peer's, or that of a model of Transformers.

Libraries choose devices and kernels while they are imported, and the fake GPU has to be in a
process before PyTorch is. So the rank is made in a new process, in the world that scripts run in.
"""

from __future__ import annotations

import traceback
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench import pool
from bench.hardware import profile_file
from bench.meters.flops import FlopMeter
from bench.meters.memory import HOST, Course, MemoryMeter, Peak
from bench.meters.step import memory_columns, memory_of_step
from bench.meters.traffic import TrafficMeter
from bench.runner import worker
from bench.runner.peer import ONLY_NATIVE, Peer
from bench.scripted import library
from bench.scripted.world import World, only_rank
from bench.simulator import dry_run, fit, predict, target
from bench.simulator.recorder import Recorder
from bench.simulator.timeline import Timeline, simulate
from methods.peers import PEERS, as_method, name_of
from odysseus.config.run import RunConfig
from odysseus.io import checkpoint
from odysseus.parallel.mesh import make_mesh


class LibraryError(RuntimeError):
    """A library's code fails in a dry run."""


@dataclass(frozen=True)
class Counted:
    """A step on one rank, counted.

    Attributes:
        columns: The row's measured columns.
        timeline: The predicted step; None without a profile with speeds.
    """

    rank: int
    columns: dict[str, Any]
    peak: Peak
    course: Course
    timeline: Timeline | None


def counts(run: RunConfig) -> bool:
    """Whether a run's dry run is one of a library's code."""
    return bool(name_of(run.method)) or run.model.implementation == "transformers"


def count(run: RunConfig) -> Counted:
    """Count a step of the rank that the run names; by default of the one with the most memory, of a
    peer's first.

    Raises:
        LibraryError: the library fails.
    """
    process = pool.one_new(library.load if target.on_gpu(run) else None)
    try:
        counted = process.submit(_count_or_say, run).result()
    finally:
        process.shutdown(wait=False, cancel_futures=True)
    if isinstance(counted, str):
        raise LibraryError(counted)
    return counted


def _count_or_say(run: RunConfig) -> Counted | str:
    """Count, or return the error: an exception of a library's own may not leave its process."""
    warnings.simplefilter("ignore", FutureWarning)  # about what libraries call
    try:
        return _count(run)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = [frame for frame in frames if "/torch/" not in frame.filename][-1]
        place = "/".join(Path(last.filename).parts[-2:])
        return f"{type(error).__name__}: {error} ({place}:{last.lineno})"


def _count(run: RunConfig) -> Counted:
    """Count the step in this process, which must be new."""
    rank, gpu, clock = _rank(run), target.on_gpu(run), target.clock(run)
    profile = profile_file.find(run.hardware) if run.hardware else None
    per_node = profile.ranks_per_node(run.world_size) if profile else run.world_size
    traffic, flops = TrafficMeter(), FlopMeter()
    meter = MemoryMeter(dry_run.CUDA_ROUNDING_BYTES if gpu else 1)
    torch.set_num_threads(1)
    with only_rank(World(rank, run.world_size, per_node, gpu)) as (device, _), ExitStack() as stack:
        stack.enter_context(patch.object(checkpoint, "load_or_initialize"))  # nothing has values
        step = _Step(run, torch.device("cuda", 0) if gpu else torch.device("cpu"))
        for index in range(step.first):
            step.train(index)
        stack.enter_context(traffic)
        stack.enter_context(flops)
        step.train(step.first, meter, Recorder(device, meter) if clock else None)
    memory = memory_columns(meter)
    columns = {"rank": rank, "backend": "fake", "status": "ok", "error": ""}
    of = as_method.matching_run(run) if name_of(run.method) else run
    columns |= dry_run.flop_columns_of(of, rank, flops.columns) | traffic.totals() | memory
    if run.hardware:
        columns |= fit.need(run, meter.peak().bytes, meter.peak(HOST).bytes).outcome
    timeline = simulate(device.program, clock) if clock else None
    columns |= predict.time_columns(run, timeline)
    unknown = ONLY_NATIVE if name_of(run.method) else ()
    known = {name: of for name, of in columns.items() if name not in unknown}
    return Counted(rank, known, meter.peak(), meter.course(), timeline)


def _rank(run: RunConfig) -> int:
    if run.rank >= 0 or name_of(run.method):
        return max(run.rank, 0)
    return dry_run.heaviest_rank(replace(run, model=replace(run.model, implementation="native")))


class _Step:
    """A step of a run's model on this rank.

    Attributes:
        first: Number of the first step that is like all later ones.
    """

    def __init__(self, run: RunConfig, device: torch.device) -> None:
        real = replace(run, dry_run=False, hardware="", rank=-1, host_memory_limit_bytes=2**62)
        if name := name_of(run.method):
            own = as_method.matching_run(real)
            peer = Peer(own, name, make_mesh(device, own))
            self.first, self.samples = PEERS[name].first_steps, peer.samples
            self._train: Any = peer.train
            self._metered: Any = peer.memory_of_step
            return
        trainer, self.samples = worker.start(real, device)
        self.first, self._train = 1, trainer.step
        self._metered = partial(memory_of_step, trainer)

    def train(self, index: int, *meters: Any) -> None:
        """Train one step, under meters if there are any."""
        batches = self.samples.step(index)
        self._metered(batches, *meters) if meters else self._train(batches)
