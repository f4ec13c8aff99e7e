"""Ours and a peer's, on the same weights and tokens, step by step in the same processes.

A machine that others share changes its pace from second to second: what counts is the ratio within
a pair of steps, one of each, of which there are many; each pair turns the order round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from bench import cell, flops
from bench.memory import MemoryMeter
from bench.traffic import TrafficMeter
from methods.peers import PEERS, PeerTrainer
from odysseus.config import RunConfig
from odysseus.data import Batch, Samples
from odysseus.step import Trainer
from odysseus.transfers import all_reduce_plain
from odysseus.weights import huggingface_shapes

TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2}
"""Of the loss and of every gradient, relative. In fp32 to the largest element, where sums in
another order differ by 1e-6; in bf16, whose every operation rounds by up to 2^-8, in Euclidean
norm: peers that round elsewhere differ by 1e-2, a gradient without a rank's part by 1e-1."""


def measured(run: RunConfig, peer: str, pairs: int) -> dict[str, Any]:
    """What one rank of a comparison does; its columns, the same on every rank."""
    with cell.process_group(run) as device:
        return measured_in_group(run, peer, pairs, device)


def measured_in_group(
    run: RunConfig, peer: str, pairs: int, device: torch.device
) -> dict[str, Any]:
    """As :func:`measured`, in a process group that is there already."""
    ours, samples = cell.start(run, device)
    theirs = Theirs(run, peer, ours)
    wrong = differences(ours, theirs, samples.step(0))
    if error := theirs.refused(wrong):
        return {"status": "invalid", "error": error}
    steps = {
        "ours": lambda i: ours.step(samples.step(i)),
        "peer": lambda i: theirs.step(theirs.samples.step(i)),
    }
    found: dict[str, Any] = {
        "largest_difference": max(wrong.values()),
        "hardware": cell.hardware_name(device),
    }
    for name, step in steps.items():
        step(0)  # makes the optimizer
        with TrafficMeter() as traffic:
            step(1)
        found[f"{name}_comm_bytes"] = traffic.totals()["comm_bytes_total"]
    found["ours_peak_bytes"] = cell.memory_of_step(ours, samples.step(2)).peak().bytes
    found["peer_peak_bytes"] = theirs.memory_of_step(theirs.samples.step(2)).peak().bytes
    times = paired(steps, pairs, device)
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, (times, found))
    slowest = np.max([of_rank for of_rank, _ in ranks], axis=0)
    for name in ("ours_comm_bytes", "peer_comm_bytes", "ours_peak_bytes", "peer_peak_bytes"):
        found[name] = max(of_rank[name] for _, of_rank in ranks)
    ratios = slowest[:, 0] / slowest[:, 1]
    return found | {
        "ours_ms_p50": float(np.median(slowest[:, 0])),
        "peer_ms_p50": float(np.median(slowest[:, 1])),
        **{f"ratio_p{q}": float(np.percentile(ratios, q)) for q in (20, 50, 80)},
    }


def paired(
    steps: dict[str, Callable[[int], object]], pairs: int, device: torch.device
) -> list[list[float]]:
    """Milliseconds of each pair's steps, in the order of `steps`; pairs begin with either."""
    times = []
    for pair in range(pairs):
        took = {}
        for name in sorted(steps, reverse=bool(pair % 2)):
            flops.synchronize(device)
            dist.barrier()
            start = time.perf_counter()
            steps[name](pair + 3)
            flops.synchronize(device)
            took[name] = (time.perf_counter() - start) * 1e3
        times.append([took[name] for name in steps])
    return times


class Theirs:
    """A peer's model and what it reads, beside ours.

    Args:
        run: Ours', whose weights, tokens and sizes are the peer's too.
        peer: Its name.
    """

    def __init__(self, run: RunConfig, peer: str, ours: Trainer) -> None:
        self.run, self.name, mesh = run, peer, ours.mesh
        self.trainer: PeerTrainer = PEERS[peer].load()(run, mesh)
        whole = replace(run, world_size=run.data_parallel_size, sequence_parallel_size=1)
        reads, shard = (whole, 0) if self.trainer.whole_samples else (run, mesh.shard)
        self.samples = Samples(reads, mesh.replica, shard, mesh.device)
        self.world = mesh.world

    def forward_backward(self, batches: list[Batch]) -> Tensor:
        """The step's loss."""
        (batch,) = batches
        loss = self.trainer.forward_backward(batch, self.run.tokens_per_step)
        if not self.trainer.whole_samples:
            all_reduce_plain(loss, self.world)
        return loss

    def step(self, batches: list[Batch]) -> Tensor:
        """Forward, backward and update; the step's loss."""
        loss = self.forward_backward(batches)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        return loss

    def memory_of_step(self, batches: list[Batch]) -> MemoryMeter:
        """A step under a meter that knows what is there before it: parameters, optimizer, batch."""
        meter = MemoryMeter()
        for tensors, kind in (
            (self.trainer.optimizer.held(), "optimizer"),
            (self.trainer.model.parameters(), "parameters"),
            ([t for batch in batches for t in batch.tensors], "activations"),
        ):
            local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
            meter.watch(local, kind)
        with meter:
            self.step(batches)
        return meter

    def refused(self, wrong: dict[str, float]) -> str:
        """Why a peer that is so far from ours is not timed; empty if it computes the same."""
        what = max(wrong, key=lambda name: wrong[name])
        if wrong[what] <= TOLERANCES[self.run.dtype]:
            return ""
        return f"{self.name} computes something else: {what} is off by {wrong[what]:.1e}"


def differences(ours: Trainer, theirs: Theirs, batches: list[Batch]) -> dict[str, float]:
    """How far the peer's loss and gradients are from ours, as TOLERANCES means it, on the rank
    where they are furthest; infinite where a gradient is missing or is no number. A collective."""
    mine = ours.forward_backward(batches).item()
    loss = theirs.forward_backward(theirs.samples.step(0)).item()
    expected = dict(_whole(ours))
    found = dict.fromkeys(expected, math.inf) | {"loss": abs(loss - mine) / abs(mine)}
    for name, gradient in theirs.trainer.whole_gradients():
        size = torch.linalg.vector_norm if ours.run.dtype == "bf16" else _largest
        found[name] = (size(gradient - expected[name]) / size(expected[name])).item()
    ours.model.zero_grad(set_to_none=True)
    theirs.trainer.optimizer.zero_grad()
    # Ranks must agree on whether to go on.
    found = {name: math.inf if math.isnan(value) else value for name, value in found.items()}
    ranks = cell.gathered(found)
    return {name: max(of_rank[name] for of_rank in ranks) for name in found}


def _largest(x: Tensor) -> Tensor:
    return x.abs().max()


def _whole(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    """Every whole gradient, on every rank."""
    shapes = huggingface_shapes(trainer.run.architecture)
    device = trainer.mesh.device
    whole = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
    for piece, gradient in trainer.gradients():
        if piece.owned:
            piece.of(whole[piece.name]).copy_(gradient)
    for name, tensor in whole.items():
        all_reduce_plain(tensor, trainer.mesh.world)
        yield name, tensor
