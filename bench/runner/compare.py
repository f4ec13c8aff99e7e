"""Compare this project's implementation with a peer on the same weights, tokens and processes.

The speed of a shared machine changes from second to second. Steps therefore run in pairs, one of
each implementation, and the result is the ratio within each of many pairs. Successive pairs run in
opposite order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from bench.meters.device import synchronize
from bench.meters.step import memory_of_step
from bench.meters.traffic import TrafficMeter
from bench.runner import worker
from bench.runner.block_streams import Streams
from bench.runner.peer import Peer
from methods import METHODS
from odysseus.config.run import RunConfig
from odysseus.parallel.mesh import make_mesh
from odysseus.parallel.sharding import huggingface_shapes, pieces
from odysseus.parallel.transfers import all_reduce_plain
from odysseus.training.block_trainer import BlockTrainer, Stream
from odysseus.training.trainer import Trainer

TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2}
"""Largest relative difference of the loss (or of the blocks' output) and of every gradient.

Fp32 differences are relative to the largest element: sums in another order differ by 1e-6. Bf16
differences are in Euclidean norm, because every operation rounds by up to 2^-8: peers that round
at other operations differ by 1e-2, a gradient that lacks one rank's part by 1e-1."""


def measured(run: RunConfig, peer: str, pairs: int, part: str = "model") -> dict[str, Any]:
    """Compare both implementations on this rank. Return the columns, the same on every rank."""
    with worker.process_group(run) as device:
        return measured_in_group(run, peer, pairs, device, part)


def measured_in_group(
    run: RunConfig, peer: str, pairs: int, device: torch.device, part: str = "model"
) -> dict[str, Any]:
    """Do the same as :func:`measured` in a process group that has already been started."""
    own, batches, peer_model = {"model": _models, "blocks": _blocks}[part](run, peer, device)
    wrong = differences(own, peer_model, batches(0))
    if error := disagreement(peer, run.dtype, wrong):
        return {"status": "invalid", "error": error}
    steps: dict[str, Callable[[int], object]] = {
        "ours": lambda i: own.step(batches(i)),
        "peer": peer_model.step,
    }
    columns: dict[str, Any] = {
        "largest_difference": max(wrong.values()),
        "tensors_checked": len(wrong),
        "hardware": worker.hardware_name(device),
    }
    for name, step in steps.items():
        step(0)  # makes the optimizer
        with TrafficMeter() as traffic:
            step(1)
        columns[f"{name}_comm_bytes"] = traffic.totals()["comm_bytes_total"]
    columns["ours_peak_bytes"] = memory_of_step(own, batches(2)).peak().bytes
    columns["peer_peak_bytes"] = peer_model.peak_bytes()
    times = paired(steps, pairs, device)
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, (times, columns))
    slowest = np.max([reported for reported, _ in ranks], axis=0)
    for name in ("ours_comm_bytes", "peer_comm_bytes", "ours_peak_bytes", "peer_peak_bytes"):
        columns[name] = max(reported[name] for _, reported in ranks)
    ratios = slowest[:, 0] / slowest[:, 1]
    return columns | {
        "ours_ms_p50": float(np.median(slowest[:, 0])),
        "peer_ms_p50": float(np.median(slowest[:, 1])),
        **{f"ratio_p{q}": float(np.percentile(ratios, q)) for q in (20, 50, 80)},
    }


def paired(
    steps: dict[str, Callable[[int], object]], pairs: int, device: torch.device
) -> list[list[float]]:
    """Milliseconds of the steps of each pair, in the order of `steps`; every other pair runs them
    in reverse."""
    times = []
    for pair in range(pairs):
        step_ms = {}
        for name in sorted(steps, reverse=bool(pair % 2)):
            synchronize(device)
            dist.barrier()
            start = time.perf_counter()
            steps[name](pair + 3)
            synchronize(device)
            step_ms[name] = (time.perf_counter() - start) * 1e3
        times.append([step_ms[name] for name in steps])
    return times


Batches = Callable[[int], Any]
"""batches(i) returns the micro batches of this project's trainer in step i."""


def _models(run: RunConfig, peer: str, device: torch.device) -> tuple[Trainer, Batches, Peer]:
    own, samples = worker.start(run, device)
    return own, samples.step, Peer(run, peer, own.mesh)


def _blocks(run: RunConfig, peer: str, device: torch.device) -> tuple[Trainer, Batches, Peer]:
    own = BlockTrainer(run, METHODS[run.method], make_mesh(device, run))
    streams = Streams(run, own.method, own.mesh)
    return own, lambda step: [streams.own], PeerBlocks(run, peer, own, streams)


class PeerBlocks(Peer):
    """A peer's blocks without the rest of the model, and the stream that they run on."""

    part = "blocks"

    def __init__(self, run: RunConfig, peer: str, own: Trainer, streams: Streams) -> None:
        super().__init__(run, peer, own.mesh)
        self.streams = streams

    def batch(self, step: int) -> Stream:
        return self.streams.peer

    def results(self, own: Trainer, batches: list[Any]) -> dict[str, tuple[Tensor, Tensor]]:
        outputs = own.forward_backward(batches), self.forward_backward(self.batch(0))
        own_output, peer_output = (self.streams.output(y) for y in outputs)
        return {
            "output": (own_output, peer_output),
            "input's gradient": self.streams.input_gradients(),
        }

    def forward_backward(self, batch: Stream) -> Tensor:
        """Run the blocks' forward and backward. Return their output."""
        batch.x.grad = None
        return self.trainer.blocks_forward_backward(batch)


def differences(own: Trainer, peer_model: Peer, batches: list[Any]) -> dict[str, float]:
    """Relative differences between the peer's results and this project's by name, in the norms of
    TOLERANCES; infinite for a gradient that the peer lacks."""
    size = torch.linalg.vector_norm if own.run.dtype == "bf16" else _largest

    def off(expected: Tensor, result: Tensor) -> float:
        return (size(result - expected) / size(expected)).item()

    errors = {name: off(*both) for name, both in peer_model.results(own, batches).items()}
    expected = dict(_whole_gradients(own))
    for name, gradient in peer_model.trainer.whole_gradients():
        errors[name] = off(expected[name], gradient)
    errors |= dict.fromkeys(expected.keys() - errors.keys(), math.inf)
    own.zero_grad()
    peer_model.trainer.optimizer.zero_grad()
    return errors


def disagreement(peer: str, dtype: str, wrong: dict[str, float]) -> str:
    """The reason not to time a peer, from the largest difference on any rank; empty if all are
    within the tolerance. The same on every rank. A collective.

    Args:
        wrong: This rank's :func:`differences`; NaN counts as infinite.
    """
    sizes = {name: math.inf if math.isnan(value) else value for name, value in wrong.items()}
    name_of_worst = max(sizes, key=lambda name: sizes[name])
    ranks = worker.gathered({"off": sizes[name_of_worst], "what": name_of_worst})
    worst = max(ranks, key=lambda rank: rank["off"])
    if worst["off"] <= TOLERANCES[dtype]:
        return ""
    return f"{peer} computes something else: {worst['what']} is off by {worst['off']:.1e}"


def checked(run: RunConfig, peer: str, device: torch.device) -> tuple[Peer, str]:
    """Return a peer with the weights of this project's trainer, and the reason not to time it, or
    an empty text. Nothing refers to the trainer afterwards, so that its memory can be freed."""
    own, samples = worker.start(run, device)
    peer_model = Peer(run, peer, own.mesh)
    return peer_model, disagreement(peer, run.dtype, differences(own, peer_model, samples.step(0)))


def _largest(x: Tensor) -> Tensor:
    return x.abs().max()


def _whole_gradients(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    """Yield name and complete gradient of each of the trainer's weights, on every rank."""
    architecture = trainer.run.architecture
    shapes, about = huggingface_shapes(architecture), (architecture, trainer.cuts)
    names = (name for name, _ in trainer.model.named_parameters())
    parts = dict.fromkeys(piece.name for name in names for piece in pieces(name, *about))
    device = trainer.mesh.device
    whole = {part: torch.zeros(shapes[part], device=device) for part in parts}
    for piece, gradient in trainer.gradients():
        if piece.owned:
            piece.of(whole[piece.name]).copy_(gradient)
    for name, tensor in whole.items():
        all_reduce_plain(tensor, trainer.mesh.world)
        yield name, tensor
