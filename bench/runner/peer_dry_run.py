"""The dry run of a peer's step, in a process of its own.

Libraries choose devices and kernels while they are imported, and the fake GPU has to be in a
process before PyTorch is. So the rank is made in a new process, in the world that scripts run in.
"""

from __future__ import annotations

import traceback
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench import pool
from bench.hardware import profile_file
from bench.meters.flops import FlopMeter
from bench.meters.memory import MemoryMeter, Peak
from bench.meters.step import flop_columns, memory_columns
from bench.meters.traffic import TrafficMeter
from bench.runner.peer import ONLY_NATIVE, Peer
from bench.scripted import library
from bench.scripted.world import World, only_rank
from bench.simulator import fit, predict, target
from bench.simulator.dry_run import CUDA_ROUNDING_BYTES
from bench.simulator.recorder import Recorder
from bench.simulator.timeline import Timeline, simulate
from methods.peers import PEERS, as_method, name_of
from odysseus.config.run import RunConfig
from odysseus.parallel.mesh import make_mesh


class PeerError(RuntimeError):
    """A peer's code fails in a dry run."""


@dataclass(frozen=True)
class Counted:
    """A peer's step on one rank, counted.

    Attributes:
        columns: The row's measured columns.
        timeline: The predicted step; None without a profile with speeds.
    """

    rank: int
    columns: dict[str, Any]
    peak: Peak
    timeline: Timeline | None


def count(run: RunConfig) -> Counted:
    """Count a step of the rank that a peer's run names, by default of the first one.

    Raises:
        PeerError: the peer fails.
    """
    process = pool.one_new(library.load if target.on_gpu(run) else None)
    try:
        counted = process.submit(_count_or_say, run).result()
    finally:
        process.shutdown(wait=False, cancel_futures=True)
    if isinstance(counted, str):
        raise PeerError(counted)
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
    """Count the step in this process, which has not been anything else."""
    rank, gpu, clock = max(run.rank, 0), target.on_gpu(run), target.clock(run)
    profile = profile_file.find(run.hardware) if run.hardware else None
    per_node = profile.ranks_per_node(run.world_size) if profile else run.world_size
    own = replace(as_method.matching_run(run), dry_run=False, hardware="", rank=-1)
    world = World(rank, run.world_size, per_node, gpu)
    traffic, flops = TrafficMeter(), FlopMeter()
    meter = MemoryMeter(CUDA_ROUNDING_BYTES if gpu else 1)
    torch.set_num_threads(1)
    with only_rank(world) as (device, _):
        mesh = make_mesh(torch.device("cuda", 0) if gpu else torch.device("cpu"), own)
        name = name_of(run.method)
        peer, first_steps = Peer(own, name, mesh), PEERS[name].first_steps
        for index in range(first_steps):
            peer.train([peer.batch(index)])
        with ExitStack() as stack:
            stack.enter_context(traffic)
            stack.enter_context(flops)
            recorder = Recorder(device, meter) if clock else None
            peer.memory_of_step([peer.batch(first_steps)], meter, recorder)
    memory = memory_columns(meter)
    outcome = fit.need(run, memory["peak_memory_bytes"], 0).outcome if run.hardware else {}
    columns = {"rank": rank, "backend": "fake", "status": "ok", "error": ""}
    columns |= flop_columns([flops.columns]) | traffic.totals() | memory | outcome
    timeline = simulate(device.program, clock) if clock else None
    columns |= predict.time_columns(run, timeline)
    known = {name: of for name, of in columns.items() if name not in ONLY_NATIVE}
    return Counted(rank, known, meter.peak(), timeline)
