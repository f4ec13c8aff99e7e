"""Random training programs, run by a plain model and by the same model prepared and split.

A program is a list of operations: forwards, backwards, freezes and evaluations in any order.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from odysseus import hf
from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import HostMemory
from odysseus.model.loss import cross_entropy_sum
from odysseus.parallel import gloo_threads
from odysseus.parallel.mesh import Mesh, make_mesh
from tests.support.hf_models import CPU, Case, build, norms_in_fp64

SHAPES = ((1, 48), (2, 48), (1, 32), (3, 16))
FROZEN = ("embed_tokens", "layers.0.", "layers.1.", "lm_head", "mlp", "norm")

Operation = tuple[Any, ...]


@dataclass
class Program:
    """Operations, and the case that they run on; and whether the caller checkpoints by himself.

    Operations are ("forward", shape, seed), ("backward", graph, retain), ("drop", graph),
    ("evaluate", shape, seed), ("raise", layer), ("freeze", part), ("unfreeze", part) and
    ("step",). A graph is a number modulo the graphs that wait; with none, it does nothing.
    """

    case: Case
    operations: list[Operation] = field(default_factory=list)
    caller_checkpoints: bool = False


class _Stop(Exception):
    """Raised in the middle of a forward."""


class Plain:
    """Runs a program on Transformers' own model in one process."""

    def __init__(self, case: Case) -> None:
        self.model = self.built(case)
        self.graphs: list[Tensor] = []
        self.losses: list[float] = []

    def built(self, case: Case) -> PreTrainedModel:
        return build(case.name, "sdpa")

    def run(self, operations: list[Operation]) -> None:
        for name, *given in operations:
            getattr(self, name)(*given)

    def batch(self, shape: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {"input_ids": torch.randint(0, 320, SHAPES[shape], generator=generator)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean loss, or this rank's part of it."""
        logits = self.model(**batch, use_cache=False).logits
        labels = batch["input_ids"][:, 1:]
        return cross_entropy_sum(logits[:, :-1], labels) / labels.numel()

    def total(self, loss: Tensor) -> float:
        return loss.item()

    def forward(self, shape: int, seed: int) -> None:
        loss = self.loss(self.batch(shape, seed))
        self.losses.append(self.total(loss.detach()))
        self.graphs.append(loss)

    def evaluate(self, shape: int, seed: int) -> None:
        with torch.no_grad():
            self.losses.append(self.total(self.loss(self.batch(shape, seed))))

    def backward(self, graph: int, retain: bool) -> None:
        if self.graphs:
            at = graph % len(self.graphs)
            if self.graphs[at].requires_grad:
                self.graphs[at].backward(retain_graph=retain)
            if not retain:
                del self.graphs[at]

    def drop(self, graph: int) -> None:
        if self.graphs:
            del self.graphs[graph % len(self.graphs)]

    def step(self) -> None:
        """Update the parameters; graphs that wait would be of other weights, so they go."""
        self.graphs.clear()
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
        self.model.zero_grad()

    def freeze(self, part: str) -> None:
        self._train(part, False)

    def unfreeze(self, part: str) -> None:
        self._train(part, True)

    def _train(self, part: str, trained: bool) -> None:
        self.graphs.clear()
        for name, parameter in self.model.named_parameters():
            if part in name:
                parameter.requires_grad_(trained)

    def stop(self, layer: int) -> None:
        """Run a forward that an exception ends."""

        def stop(*_: Any) -> None:
            raise _Stop

        handle = self.model.model.layers[layer].mlp.register_forward_hook(stop)
        try:
            self.loss(self.batch(0, 0))
        except _Stop:
            pass
        finally:
            handle.remove()

    def gradients(self) -> dict[str, Tensor]:
        grads = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        return {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()}


class Split(Plain):
    """Runs a program on the model that odysseus.hf has prepared, on this rank's shards."""

    def __init__(
        self,
        case: Case,
        mesh: Mesh,
        run: RunConfig,
        host: HostMemory | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.mesh, self.run_config, self.host, self.dtype = mesh, run, host, dtype
        super().__init__(case)

    def built(self, case: Case) -> PreTrainedModel:
        model = build(case.name, case.attention)
        hf.prepare(model.to(self.dtype), self.mesh, self.run_config, self.host)
        return model

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        shard = hf.shard_batch(batch, self.mesh)
        items = batch["input_ids"][:, 1:].numel()
        return hf.loss(self.model(**shard), shard["shift_labels"], items)

    def total(self, loss: Tensor) -> float:
        whole = loss.detach().clone()
        torch.distributed.all_reduce(whole)
        return whole.item()


def differences(programs: list[Program]) -> list[dict[str, float]]:
    """Return, per program on this rank, the largest error of losses and of each gradient relative
    to its largest element."""
    norms_in_fp64()
    torch.set_num_threads(1)
    world_size, found = torch.distributed.get_world_size(), []
    meshes: dict[int, Mesh] = {}
    for program in programs:
        run = program.case.run(world_size)
        mesh = meshes.setdefault(run.ring_parallel_size, make_mesh(CPU, run))
        hf.register(mesh)
        plain, split = Plain(program.case), Split(program.case, mesh, run)
        if program.caller_checkpoints:
            split.model.gradient_checkpointing_enable()
        for runner in (plain, split):
            runner.run(program.operations)
        expected, gradients = plain.gradients(), split.gradients()
        pairs = zip(plain.losses, split.losses, strict=True)
        worst = {"loss": max((abs(a - b) for a, b in pairs), default=0.0)}
        for name in expected.keys() | gradients.keys():
            if (name in expected) != (name in gradients):
                worst[f"only one has {name}"] = 1.0
                continue
            scale = expected[name].abs().max().clamp(min=1e-30)
            worst[name] = ((gradients[name] - expected[name]).abs().max() / scale).item()
        found.append(worst)
    return found


LOOPS: dict[str, list[Operation]] = {
    "training": [("forward", 0, 1), ("backward", 0, False), ("step",)],
    "losses that are dropped": [("forward", 0, 1), ("drop", 0)],
    "lower layers frozen": [
        *[("freeze", "embed_tokens"), ("freeze", "layers.0."), ("freeze", "layers.1.")],
        *[("forward", 0, 1), ("backward", 0, False)],
    ],
    "batches of any shape": [
        *[operation for shape in range(4) for operation in (("forward", shape, 1),) * 2],
        *[("backward", 0, False)] * 8,
    ],
    "evaluations and exceptions": [
        *[("forward", 0, 1), ("evaluate", 1, 1), ("stop", 1), ("backward", 0, False)],
    ],
    "backward twice": [("forward", 0, 1), ("backward", 0, True), ("backward", 0, False)],
}
"""Steps of loops that may leak: what one leaves behind grows with the steps."""


def kept(toggles: dict[str, Any], more: int) -> dict[str, list[tuple[int, int, int, int]]]:
    """Return, by loop, what is alive on this rank after 5 and after `more` further steps: number
    and bytes of all tensors, number and bytes of host buffers."""
    torch.set_num_threads(1)
    case = Case("llama", toggles=toggles)
    run = case.run(torch.distributed.get_world_size())
    mesh = make_mesh(CPU, run)
    hf.register(mesh)
    found: dict[str, list[tuple[int, int, int, int]]] = {}
    for name, operations in LOOPS.items():
        host = HostMemory.for_run(run, CPU)
        split = Split(case, mesh, run, host)
        for steps in (5, more):
            for operation in steps * operations:
                split.run([operation])
                gloo_threads.settle()  # they may hold a graph, whose buffer is in use until then
            split.losses.clear()
            found.setdefault(name, []).append(
                (*tensors_alive(), len(host.tensors), host.held_bytes)
            )
    return found


def tensors_alive() -> tuple[int, int]:
    """Return the number and the bytes of all tensors of this process."""
    time.sleep(0.2)  # gloo's threads let go of a tensor a little after its collective has ended
    gc.collect()
    alive = [x.nbytes for x in gc.get_objects() if isinstance(x, Tensor)]
    return len(alive), sum(alive)


def trained_again_in_bf16(part: str) -> float:
    """Return the largest difference between the gradients of a model that was frozen in a part at
    its first step, and those of one that was not."""
    case = Case("llama", toggles={"dtype": "bf16"})
    run = case.run(torch.distributed.get_world_size())
    mesh = make_mesh(CPU, run)
    hf.register(mesh)
    found = []
    for frozen in (True, False):
        split = Split(case, mesh, run, dtype=torch.float32)
        if frozen:
            split.run([("freeze", part), ("forward", 0, 1), ("backward", 0, False)])
            split.run([("unfreeze", part)])
            split.model.zero_grad()
        split.run([("forward", 0, 2), ("backward", 0, False)])
        found.append(split.gradients())
    once, again = found
    assert once.keys() == again.keys()
    return max((once[name] - again[name]).abs().max().item() for name in once)
