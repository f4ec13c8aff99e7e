"""Measured and predicted traffic of one step."""

from __future__ import annotations

import torch

from bench.meters.traffic import TrafficMeter
from methods import method_of
from odysseus.config.run import RunConfig
from odysseus.io.text import Samples
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer


def measured_columns(runs: list[RunConfig]) -> list[dict[str, int]]:
    """Measure the traffic of a step of each run on this rank. Runs of equal sizes share a mesh."""
    meshes = {}
    columns = []
    for run in runs:
        experts = run.parts.mlp == "expert", run.expert_ranks
        shape = *run.axis_sizes.items(), run.architecture.num_key_value_heads, experts
        mesh = meshes.get(shape) or make_mesh(torch.device("cpu"), run)
        meshes[shape] = mesh
        trainer = Trainer(run, method_of(run.method), mesh)
        samples = Samples(run, mesh.replica, mesh.shard, mesh.device)
        with TrafficMeter() as meter:
            trainer.step(samples.step(0))
        columns.append(meter.totals())
    return columns
