"""A dry run's counts compared with the meters of real steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.meters.flops import FlopMeter
from bench.meters.step import memory_columns, memory_of_step
from bench.meters.traffic import TrafficMeter
from bench.simulator import dry_run
from methods import method_of
from odysseus.config.run import RunConfig
from odysseus.io.text import Samples
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.ranks import run_ranks


def measured(runs: list[RunConfig]) -> list[dict[str, Any]]:
    """Return the columns of each run on this rank."""
    torch.set_num_threads(1)
    found = []
    mesh = make_mesh(torch.device("cpu"), runs[0])
    for run in runs:
        trainer = Trainer(run, method_of(run.method), mesh)
        samples = Samples(run, mesh.replica, mesh.shard, mesh.device)
        trainer.step(samples.step(0))
        with TrafficMeter() as traffic, FlopMeter() as flops:
            trainer.step(samples.step(1))
        columns = memory_columns(memory_of_step(trainer, samples.step(2)))
        found.append({**traffic.totals(), **columns, **flops.columns})
    return found


def counted(run: RunConfig, rank: int) -> dict[str, Any]:
    """Return the same columns from the dry run."""
    found = dry_run.count(run, rank)
    columns = memory_columns(found.memory)
    return {**found.traffic, **columns, **found.flops}


def check_all(
    runs: list[RunConfig],
    ranks: list[int],
    on_rank: Callable[[list[RunConfig]], list[dict[str, Any]]] = measured,
) -> None:
    """Compare runs that share a mesh. The real ranks' first step differs from the dry run's.

    Args:
        on_rank: Like :func:`measured`.
    """
    real = run_ranks(on_rank, runs[0].world_size, runs)
    for rank in ranks:
        for run, expected in zip(runs, real[rank], strict=True):
            assert counted(run, rank) == expected, (rank, run)
