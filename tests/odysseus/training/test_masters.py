"""Master weights on the host alone: bit for bit the training that has them on the device.

Weights are gathered in the compute dtype either way, so the same numbers are computed; with micro
steps the same two sums are added.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bench.meters.step import memory_columns, memory_of_step
from bench.theory.memory import host_bytes
from bench.theory.traffic import shard_elements
from methods import METHODS
from odysseus.config.nested import OptimizerOptions
from odysseus.config.run import RunConfig
from odysseus.io.text import Samples
from odysseus.memory.host_memory import HostMemory, HostMemoryError
from odysseus.parallel import sharding
from odysseus.parallel.mesh import make_mesh
from odysseus.training.masters import HostMasters
from odysseus.training.trainer import Trainer
from tests.support.adamw import adamw
from tests.support.ranks import run_ranks
from tests.support.runs import MODEL
from tests.support.toggles import AHEAD

CPU = torch.device("cpu")
MASTERS = OptimizerOptions(learning_rate=0.05, offload="masters")
RUN = RunConfig(model=MODEL, seq_len=32, dtype="bf16", world_size=2, optimizer=MASTERS)
RUNS = {
    "one micro step": RUN,
    "three micro steps": replace(RUN, gradient_accumulation_steps=3),
    "buckets": replace(RUN, reduce_bucket_size=1000),
    "reductions in bf16": replace(RUN, seq_parallel_communication_data_type="bf16"),
    "overlap": replace(RUN, gradient_accumulation_steps=2, **AHEAD),
    "experts": replace(RUN, model=replace(MODEL, num_experts=4, num_experts_per_tok=2)),
}


def train(runs: list[RunConfig]) -> list[list[Tensor]]:
    """Losses and norms of three steps of each run, and this rank's weights after them."""
    results = []
    for run in runs:
        mesh = make_mesh(CPU, run)
        trainer = Trainer(run, METHODS[run.method], mesh)
        samples = Samples(run, mesh.replica, mesh.shard, mesh.device)
        steps = [trainer.step(samples.step(step)) for step in range(3)]
        weights = [view.clone() for _, view in trainer.local_pieces()]
        results.append([t for r in steps for t in (r.loss, r.grad_norm)] + weights)
    return results


@pytest.mark.parametrize("name", RUNS)
def test_it_trains_bit_for_bit_as_without(name: str) -> None:
    """The norm is a sum over all ranks' parameters, which another order rounds elsewhere."""
    runs = [replace(RUNS[name], method=method) for method in METHODS]
    plain = [replace(run, optimizer=replace(MASTERS, offload="none")) for run in runs]
    for results in run_ranks(train, 2, runs + plain):
        for run, own, expected in zip(runs, results, results[len(runs) :], strict=False):
            check_equal(own, expected, run.method)


def check_equal(own: list[Tensor], expected: list[Tensor], name: str) -> None:
    norms = slice(1, 6, 2)
    assert torch.allclose(*map(torch.stack, (own[norms], expected[norms])), rtol=1e-14)
    del own[norms], expected[norms]
    assert all(map(torch.equal, own, expected)), name
    assert {weight.dtype for weight in own[3:]} == {torch.float32}


def test_a_model_of_transformers_does_too() -> None:
    run = replace(RUN, method="ulysses", model=replace(MODEL, implementation="transformers"))
    plain = replace(run, optimizer=replace(MASTERS, offload="none"))
    for own, expected in run_ranks(train, 2, [run, plain]):
        check_equal(own, expected, "transformers")


def after_a_dropped_step(run: RunConfig) -> list[bool]:
    """Whether a step after one that was not taken leaves the weights of a first step."""
    mesh = make_mesh(CPU, run)
    weights = []
    for drops in (False, True):
        trainer = Trainer(run, METHODS[run.method], mesh)
        samples = Samples(run, mesh.replica, mesh.shard, mesh.device)
        if drops:
            trainer.forward_backward(samples.step(1))
            trainer.zero_grad()
            assert [*trainer.gradients()] == []
        trainer.step(samples.step(0))
        weights.append([view.clone() for _, view in trainer.local_pieces()])
    return [*map(torch.equal, *weights)]


def test_gradients_that_are_dropped_leave_nothing() -> None:
    assert all(
        all(equal) for equal in run_ranks(after_a_dropped_step, 2, replace(RUN, method="tp_sp"))
    )


def test_five_steps_follow_the_formula() -> None:
    """Each gradient comes in two halves, and no buffer keeps what an earlier step left in it."""
    made = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(6, 4, 3, generator=made, dtype=torch.float64)
    parameter = nn.Parameter(start.clone())
    host = HostMemory(10**6, CPU)
    run = RunConfig(dtype="fp64", optimizer=MASTERS)
    masters = HostMasters([("weight", parameter)], run, host, CPU, add_square)
    masters.weights["weight"].copy_(start)
    for gradient in gradients:
        for part in (0.25, 0.75):
            (parameter * part * gradient).sum().backward()
            assert parameter.grad is None
        assert masters.squares.sum().item() == pytest.approx(gradient.square().sum().item())
        masters.update()
    assert (parameter - adamw(start, gradients, 0.05)).abs().max() < 1e-14
    assert torch.equal(parameter, masters.weights["weight"])
    before = parameter.detach().clone()
    masters.update()  # no gradient has come
    assert torch.equal(parameter, before)


def add_square(square: Tensor, name: str, gradient: Tensor) -> None:
    square += gradient.square().sum()


def metered(run: RunConfig) -> tuple[dict[str, int], set[torch.dtype]]:
    """The second step's columns of memory, and the dtypes of the shards."""
    mesh = make_mesh(CPU, run)
    trainer = Trainer(run, METHODS[run.method], mesh)
    samples = Samples(run, mesh.replica, mesh.shard, mesh.device)
    trainer.step(samples.step(0))
    meter = memory_of_step(trainer, samples.step(1))
    assert not any(parameter.grad is not None for parameter in trainer.model.parameters())
    shards = {sharding.local_shard(p)[0].dtype for p in trainer.model.parameters()}
    return memory_columns(meter), shards


def test_the_device_holds_shards_in_the_compute_dtype() -> None:
    for columns, dtypes in run_ranks(metered, 2, replace(RUN, method="ulysses")):
        assert dtypes == {torch.bfloat16}
        assert columns["peak_memory_parameters_bytes"] == 2 * sum(shard_elements(RUN))
        assert columns["peak_memory_optimizer_bytes"] == 0
        assert columns["peak_host_bytes"] == host_bytes(RUN)


def test_too_little_host_memory_is_an_error() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    with pytest.raises(HostMemoryError, match="offloading needs 64 bytes"):
        HostMasters([("weight", parameter)], RUN, HostMemory(63, CPU), CPU, add_square)
