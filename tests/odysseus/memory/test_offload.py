"""Offloading: what goes to host memory, what comes back, and how many bytes each side holds."""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.meters.step import memory_of_step
from bench.theory import memory as theory_memory
from methods import METHODS
from odysseus.config.run import ModelOptions, OptimizerOptions, RunConfig
from odysseus.io.text import Samples
from odysseus.memory.host_memory import HostMemory, HostMemoryError
from odysseus.memory.offload import CheckpointOffload
from odysseus.parallel import sharding
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.marks import slow
from tests.support.ranks import run_ranks

CPU = torch.device("cpu")
LAYERS = 4


def test_an_account_counts_up_to_its_limit() -> None:
    host = HostMemory(100, torch.device("cpu"))
    made = host.empty(torch.ones(3, 2, dtype=torch.float64))
    assert (made.shape, made.dtype, made.device) == ((3, 2), torch.float64, CPU)
    host.claim(52)  # to the byte
    assert host.held_bytes == 100
    assert host.tensors == [made]
    for take in (lambda: host.claim(1), lambda: host.empty(torch.ones(1, dtype=torch.uint8))):
        with pytest.raises(HostMemoryError) as error:
            take()
        assert str(error.value) == (
            "offloading needs 101 bytes of host memory on this rank, "
            "whose share of host_memory_limit_bytes is 100"
        )
    assert host.held_bytes == 100  # what was refused is not held
    assert isinstance(error.value, MemoryError)


def test_ranks_of_a_node_share_its_limit() -> None:
    run = RunConfig(world_size=4, host_memory_limit_bytes=1003)
    host = HostMemory.for_run(run, CPU)
    assert (host.limit_bytes, host.pinned) == (250, False)
    assert HostMemory.for_run(run, torch.device("cuda")).pinned


class Chain:
    """Blocks y = x + tanh(x w) under activation checkpointing with offloaded inputs."""

    def __init__(self, host: HostMemory) -> None:
        torch.manual_seed(0)
        self.offload = CheckpointOffload(host, CPU, LAYERS)
        self.weights = [nn.Parameter(torch.randn(8, 8)) for _ in range(LAYERS)]
        self.inputs: list[Any] = []
        """Weak references to the inputs, in order."""
        self.copies: list[Tensor] = []
        self.read: list[Tensor] = []
        """Inputs that the blocks have read: in forward, then in backward from the last block on."""

    def block(self, x: Tensor, weight: Tensor) -> Tensor:
        self.read.append(x.detach().clone())
        return x + (x @ weight).tanh()

    def __call__(self, x: Tensor) -> Tensor:
        for index, weight in enumerate(self.weights):
            self.inputs.append(weakref.ref(x.untyped_storage()))
            self.copies.append(x.detach().clone())
            with self.offload.saved_input_hooks(index, x):
                x = checkpoint(self.block, x, weight, use_reentrant=False)
        return x

    @property
    def alive(self) -> list[bool]:
        return [input() is not None for input in self.inputs]


def test_inputs_leave_but_the_last_and_come_back_as_they_were() -> None:
    host = HostMemory(10**6, torch.device("cpu"))
    chain = Chain(host)
    y = chain(torch.randn(5, 8, requires_grad=True) * 1)
    assert chain.alive == [False] * (LAYERS - 1) + [True]
    assert host.held_bytes == (LAYERS - 1) * 4 * 5 * 8
    on_host = list(reversed(host.tensors))
    assert all(torch.equal(a, b) for a, b in zip(chain.copies[-2::-1], on_host, strict=True))
    y.sum().backward()
    back = chain.read[LAYERS:]
    assert all(torch.equal(a, b) for a, b in zip(chain.copies[::-1], back, strict=True))


def test_buffers_serve_every_step_and_micro_step() -> None:
    """The sum of three micro steps' gradients and a second step's: as without offloading."""
    host = HostMemory((LAYERS - 1) * 4 * 5 * 8, torch.device("cpu"))  # not a byte more
    chain = Chain(host)
    torch.manual_seed(1)
    for _ in range(2):
        plain = [w.detach().clone().requires_grad_() for w in chain.weights]
        for x in torch.randn(3, 5, 8):
            chain(x.requires_grad_() * 1).square().sum().backward()
            for weight in plain:
                x = x + (x @ weight).tanh()
            x.square().sum().backward()
        for weight, expected in zip(chain.weights, plain, strict=True):
            assert weight.grad is not None
            assert torch.equal(weight.grad, expected.grad)
            weight.grad = None
    assert len(host.tensors) == LAYERS - 1


MODEL = ModelOptions(
    hidden_size=32,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
)
RUN = RunConfig(model=MODEL, seq_len=64, host_memory_limit_bytes=2**30)
CHECKPOINTS = {"activation_checkpoint_cpu_offload": True}
OPTIMIZER = {"optimizer": OptimizerOptions(offload="cpu")}
PARAMETERS = {"parameter_offload": "cpu"}
PLACES: dict[str, dict[str, Any]] = {
    "device": {"activation_checkpointing": True},
    "checkpoints": CHECKPOINTS,
    "optimizer": {"activation_checkpointing": True} | OPTIMIZER,
    "parameters": {"activation_checkpointing": True} | PARAMETERS,
    "all": CHECKPOINTS | OPTIMIZER | PARAMETERS,
}


def bytes_held(runs: list[RunConfig]) -> list[dict[str, int]]:
    """Return peaks of each run's second step on this rank: on the host, and per kind of tensor."""
    found = []
    for run in runs:
        mesh = make_mesh(CPU, run)
        trainer = Trainer(run, METHODS[run.method], mesh)
        samples = Samples(run, mesh.replica, mesh.shard, CPU)
        trainer.step(samples.step(0))
        meter = memory_of_step(trainer, samples.step(1))
        kinds = ("parameters", "gradients", "optimizer", "activations")
        shards = [sharding.local_shard(p)[0] for p in trainer.model.parameters()]
        found.append(
            {kind: meter.peak(kind).bytes for kind in kinds}
            | {"host": meter.peak("host").bytes, "claimed": trainer.host.held_bytes}
            | {"shards": sum(s.nbytes for s in shards), "tensors": len(shards)}
        )
    return found


@pytest.mark.parametrize(
    ("size", "methods"),
    [(2, ("tp_sp",)), *(slow(size, tuple(METHODS)) for size in (1, 2, 4))],
)
def test_bytes_on_either_side(size: int, methods: tuple[str, ...]) -> None:
    """Host memory equals its closed form to the byte for every method, and the device has it less.

    All block inputs but two leave: the last stays, whose backward is next, and the one before it
    is fetched meanwhile. Of what ZeRO keeps, nothing is left; gradients pass, a block's at a time.
    """
    runs = [
        replace(RUN, method=method, world_size=size, **place)
        for method in methods
        for place in PLACES.values()
    ]
    if size == 2:
        runs += [replace(r, dtype="bf16", micro_batch_size=2) for r in runs if r.method == "tp_sp"]
    shapes = sharding.huggingface_shapes(RUN.architecture).items()
    block = sum(prod(shape) for name, shape in shapes if ".layers.0." in name)
    for rank in run_ranks(bytes_held, size, runs):
        for first in range(0, len(runs), len(PLACES)):
            held = dict(zip(PLACES, rank[first : first + len(PLACES)], strict=True))
            for place, run in zip(PLACES, runs[first:], strict=False):
                closed = theory_memory.host_bytes(run)
                assert held[place]["host"] == closed, (place, run)
                # AdamW's step counts, 4 bytes a tensor, are its own.
                uncounted = 4 * held[place]["tensors"] if run.optimizer_on_host else 0
                assert held[place]["claimed"] == closed - uncounted
            stream, device = theory_memory.stream_bytes(runs[first]), held["device"]
            shards, tensors = device["shards"], device["tensors"]
            assert device["host"] == 0
            assert device["optimizer"] == 2 * shards + 4 * tensors
            moved = device["activations"] - held["checkpoints"]["activations"]
            assert moved == (RUN.architecture.num_hidden_layers - 2) * stream, runs[first]
            assert held["all"]["activations"] == held["checkpoints"]["activations"]
            for place in ("optimizer", "parameters", "all"):
                assert held[place]["optimizer"] == 0
            assert held["optimizer"]["parameters"] == device["parameters"] == shards
            assert held["optimizer"]["gradients"] == device["gradients"] >= shards
            for place in ("parameters", "all"):
                assert held[place]["parameters"] == 0
                assert held[place]["gradients"] <= block * runs[first].compute_dtype.itemsize


def trained_shards(runs: list[RunConfig]) -> list[str]:
    """A digest of this rank's shards after three steps of each run."""
    found = []
    for run in runs:
        mesh = make_mesh(CPU, run)
        trainer = Trainer(run, METHODS[run.method], mesh)
        samples = Samples(run, mesh.replica, mesh.shard, CPU)
        for step in range(3):
            trainer.step(samples.step(step))
        shards = [sharding.local_shard(p)[0] for p in trainer.model.parameters()]
        of = b"".join(shard.contiguous().numpy().tobytes() for shard in shards)
        found.append(hashlib.sha256(of).hexdigest())
    return found


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_adamw_on_the_host_is_adamw_on_the_device(dtype: Any) -> None:
    """Bit for bit after three steps: the same elementwise arithmetic on the same numbers."""
    base = replace(RUN, world_size=2, dtype=dtype)
    slower = OptimizerOptions(learning_rate=1e-9)
    runs = [replace(base, **place) for place in ({}, OPTIMIZER, PARAMETERS)]
    runs.append(replace(base, optimizer=slower))
    for device, optimizer, parameters, other in run_ranks(trained_shards, 2, runs):
        assert optimizer == device
        assert parameters == device
        assert other != device
