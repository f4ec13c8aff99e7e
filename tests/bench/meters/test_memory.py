"""The memory meter against bytes counted by hand, and activations against their closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor, nn

from bench.meters.memory import MemoryMeter
from bench.meters.step import memory_of_step
from bench.simulator import dry_run
from bench.theory import memory as theory_memory
from methods import METHODS, method_of
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.io.text import Samples
from odysseus.parallel import gloo_threads, sharding
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.marks import slow
from tests.support.ranks import run_ranks

KIB = 1024


def tensor(kib: int) -> Tensor:
    return torch.empty(kib * KIB, dtype=torch.uint8)


def test_the_meter_counts_tensors_alive_at_once() -> None:
    with MemoryMeter() as meter:
        kept = tensor(10)
        tensor(5)  # gone at once
        view = kept[:100]
        more = tensor(3)
        del kept
        last = tensor(1)  # the view keeps the first alive
        del view, more, last
    peak = meter.peak()
    assert peak.bytes == 15 * KIB
    assert [a.bytes for a in peak.alive] == [10 * KIB, 5 * KIB]


def test_kinds_may_be_learned_late_and_split_the_peak() -> None:
    weight = torch.empty(2 * KIB, dtype=torch.uint8)
    meter = MemoryMeter()
    meter.watch([weight], "parameters")
    with meter:
        gradient = tensor(4)
        temporary = tensor(8)
        del temporary
        meter.watch([gradient], "gradients")
    kinds = meter.peak().by_kind
    assert kinds["parameters"] == 2 * KIB
    assert kinds["gradients"] == 4 * KIB
    assert kinds["activations"] == 8 * KIB
    assert meter.peak("gradients").bytes == 4 * KIB


def test_resizing_a_storage_frees_and_allocates() -> None:
    """FSDP2 frees gathered parameters by resizing their storage to nothing."""
    resize = torch.UntypedStorage.resize_
    with MemoryMeter() as meter:
        buffer = tensor(10)
        buffer.untyped_storage().resize_(0)
        other = tensor(9)
        buffer.untyped_storage().resize_(4 * KIB)
        del other
    assert torch.UntypedStorage.resize_ is resize
    assert meter.peak().bytes == 13 * KIB


def waits_for_threads(wait: str) -> int:
    """Return how often the meter waits for gloo's threads around a collective and its first use."""
    calls = 0

    def settle() -> None:
        nonlocal calls
        calls += 1

    with pytest.MonkeyPatch.context() as patch, MemoryMeter():
        patch.setattr(gloo_threads, "settle", settle)
        reduced = funcol.all_reduce(torch.ones(4), "sum", dist.group.WORLD)
        assert calls == 0
        if wait == "said":
            funcol.wait_tensor(reduced)
        else:
            torch.stack([reduced, reduced])
    return calls


@pytest.mark.parametrize("wait", ["said", "by_use"])
def test_a_collective_is_done_when_its_thread_has_let_go_of_its_tensors(wait: str) -> None:
    assert run_ranks(waits_for_threads, 1, wait) == [1]


def test_one_linear_layer_by_hand() -> None:
    """[8, 16] @ [16, 4]: output 8·4, its square 8·4, and in backward the gradients."""
    layer = nn.Linear(16, 4, bias=False)
    x = torch.randn(8, 16)
    meter = MemoryMeter()
    meter.watch([layer.weight], "parameters")
    meter.watch([x], "activations")
    with meter:
        y = layer(x)
        loss = y.sum()
        y_bytes, loss_bytes = 8 * 4 * 4, 4
        del y, loss
    forward = 16 * 4 * 4 + 8 * 16 * 4 + y_bytes + loss_bytes
    assert meter.peak().bytes == forward


def measured_activations(runs: list[RunConfig]) -> list[int]:
    """Return each run's peak of activations; also check parameters and optimizer states."""
    found = []
    for run in runs:
        mesh = make_mesh(torch.device("cpu"), run)
        trainer = Trainer(run, method_of(run.method), mesh)
        samples = Samples(run, mesh.replica, mesh.shard, mesh.device)
        trainer.step(samples.step(0))
        meter = memory_of_step(trainer, samples.step(1))
        held = sum(p.nbytes for p, _ in map(sharding.local_shard, trainer.model.parameters()))
        kinds = meter.peak().by_kind
        assert kinds["parameters"] == held
        # AdamW keeps two moments a parameter and one fp32 step count a tensor.
        count = len(list(trainer.model.parameters()))
        assert kinds["optimizer"] == 2 * held + 4 * count
        found.append(meter.peak("activations").bytes)
    return found


MODEL = ModelOptions(
    hidden_size=64,
    intermediate_size=640,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=8,
)
RUN = RunConfig(method="tp_sp", model=MODEL, seq_len=1024)


def counted_activations(runs: list[RunConfig]) -> list[int]:
    """Return each run's peak of activations, from a dry run of rank 0."""
    return [dry_run.count(run, 0).memory.peak("activations").bytes for run in runs]


def of_rank_0(runs: list[RunConfig]) -> list[int]:
    """Return each run's peak of activations on rank 0 of real ranks."""
    return run_ranks(measured_activations, runs[0].world_size, runs)[0]


Peaks = Callable[[list[RunConfig]], list[int]]


@pytest.mark.parametrize(
    ("size", "peaks"), [(4, counted_activations), *(slow(n, of_rank_0) for n in (1, 2, 4, 8))]
)
def test_activations_equal_their_closed_form(size: int, peaks: Peaks) -> None:
    """The closed form holds to the byte for every method; tp_sp's is 1/n of the whole, within 2
    %."""
    runs = [replace(RUN, method=method, world_size=size) for method in METHODS]
    runs += [replace(run, dtype="bf16") for run in runs if run.method != "tp"]
    grouped = replace(MODEL, num_key_value_heads=2)
    runs += [replace(RUN, micro_batch_size=2, dtype="fp64", world_size=size, model=grouped)]
    closed = [theory_memory.peak_activation_bytes(run) for run in runs]
    assert peaks(runs) == closed
    whole = theory_memory.peak_activation_bytes(replace(RUN, world_size=1))
    shard = closed[runs.index(replace(RUN, world_size=size))]
    assert shard * size == pytest.approx(whole, rel=0.02)


VOCABULARY = replace(MODEL, vocab_size=1024, num_hidden_layers=3)
THIN = replace(VOCABULARY, intermediate_size=64, num_key_value_heads=2)
WHOLE_LOSS = {"tiled_loss_compute": False}
TILED_LOSS = {"tiled_loss_compute": True, "tiled_loss_bytes": 1024 * 4 * 64}
TRICKS: list[dict[str, Any]] = [
    WHOLE_LOSS,
    WHOLE_LOSS | {"activation_checkpointing": True},
    TILED_LOSS | {"activation_checkpointing": True},
    TILED_LOSS | {"tiled_mlp_compute": True},
    TILED_LOSS | {"tiled_mlp_compute": True, "activation_checkpointing": True},
    WHOLE_LOSS | {"activation_checkpoint_cpu_offload": True},
    TILED_LOSS | {"activation_checkpoint_cpu_offload": True},
    TILED_LOSS | {"activation_checkpoint_cpu_offload": True, "tiled_mlp_compute": True},
]


PEAKS = {"wide_mlp": VOCABULARY, "thin_mlp": THIN}
QUICK = "ulysses", "thin_mlp"
OTHERS = [slow(*case, counted_activations) for case in product(METHODS, PEAKS) if case != QUICK]
REAL = [slow("tp_sp", "wide_mlp", of_rank_0), slow(*QUICK, of_rank_0)]
REAL += [slow("ulysses+tp_sp", "wide_mlp", of_rank_0), slow("tsp+zero", "thin_mlp", of_rank_0)]


@pytest.mark.parametrize(
    ("method", "peak", "peaks"), [(*QUICK, counted_activations), *OTHERS, *REAL]
)
def test_activations_under_tricks_equal_their_closed_form(
    method: str, peak: str, peaks: Peaks
) -> None:
    """The closed form holds to the byte, with the peak at the MLP, at a norm, at attention or at
    the loss."""
    model = PEAKS[peak]
    length = 1024 if model is VOCABULARY else 2048  # thinner ones peak elsewhere when short
    base = replace(RUN, method=method, model=model, world_size=4, seq_len=length)
    runs = [replace(base, **tricks) for tricks in TRICKS]
    closed = [theory_memory.peak_activation_bytes(run) for run in runs]
    assert None not in closed
    assert peaks(runs) == closed


SMALL = ModelOptions(vocab_size=512, hidden_size=16, intermediate_size=96, head_dim=4)
WIDE_HEADS = replace(SMALL, head_dim=64)
STEPS: dict[str, dict[str, Any]] = {
    "wide heads": {"model": WIDE_HEADS},
    "two micro steps": {"gradient_accumulation_steps": 2},
    "three, recomputed": {"gradient_accumulation_steps": 3, "activation_checkpointing": True},
    "one tile of the loss": {"tiled_loss_compute": True},
    "one tile, two steps": {"tiled_loss_compute": True, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("method", METHODS)
def test_accumulation_and_the_loss_are_in_the_closed_form(method: str, name: str) -> None:
    """All micro steps' batches are alive; at a small tile's loss its labels and masks count."""
    samples = 1 if name == "wide heads" else 2
    run = RunConfig(method=method, model=SMALL, world_size=2, seq_len=80, micro_batch_size=samples)
    run = replace(run, **STEPS[name])
    if (method, name) == ("ulysses", "wide heads"):
        assert theory_memory.peak_activation_bytes(run) is None
    else:
        assert counted_activations([run]) == [theory_memory.peak_activation_bytes(run)]


def random_run(draw: Random) -> RunConfig:
    """Return a run of a pair with a closed form, at sizes at which any moment may be the peak."""
    model = replace(
        MODEL,
        intermediate_size=draw.choice([16, 64, 640]),
        num_key_value_heads=draw.choice([1, 2, 8]),
        vocab_size=draw.choice([256, 1024]),
        num_hidden_layers=draw.choice([1, 2, 3]),
    )
    return replace(
        RUN,
        method=draw.choice(WITH_A_FORM),
        model=model,
        world_size=draw.choice([1, 2, 4, 8]),
        seq_len=draw.choice([512, 1024, 2048]),
        micro_batch_size=draw.choice([1, 1, 2]),
        dtype=draw.choice(["fp32", "fp32", "fp64", "bf16"]),
        **draw.choice(TRICKS),
    )


WITH_A_FORM = [*METHODS, "tsp+tp_sp", "tsp+zero", "ulysses+tp_sp"]


@pytest.mark.parametrize("seed", [0, *(slow(seed) for seed in range(1, 10))])
def test_random_sizes_equal_their_closed_form(seed: int) -> None:
    draw = Random(seed)
    runs = [random_run(draw) for _ in range(20)]
    claimed = [run for run in runs if theory_memory.peak_activation_bytes(run) is not None]
    assert len(claimed) > 7
    for run in claimed:
        assert counted_activations([run]) == [theory_memory.peak_activation_bytes(run)], run


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("odysseus", {"num_experts_per_tok": 1}),
        ("ulysses", {"scoring_func": "sigmoid", "router_aux_loss_coef": 0.1}),
        ("tsp+zero", {"norm_topk_prob": False, "num_experts_per_tok": 3, "num_hidden_layers": 1}),
        ("ulysses", {"intermediate_size": 16, "num_experts": 8}),
    ],
)
def test_experts_in_the_closed_form(method: str, model: dict[str, Any]) -> None:
    """The peak of narrow experts is at the down projection, that of wide ones at the weights of
    their rows."""
    sizes = {
        "intermediate_size": 160,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 256,
    }
    run = replace(RUN, method=method, world_size=4, model=replace(MODEL, **(sizes | model)))
    closed = theory_memory.peak_activation_bytes(run)
    assert [closed] == counted_activations([run])
    for change in ({"method": "tp_sp"}, {"activation_checkpointing": True}, {"dtype": "bf16"}):
        assert theory_memory.peak_activation_bytes(replace(run, **change)) is None


def test_no_closed_form_is_claimed_without_a_derivation() -> None:
    tricks = {"activation_checkpointing": True}
    for run in (
        replace(RUN, model=replace(MODEL, tie_word_embeddings=True)),
        replace(RUN, method="ulysses", model=replace(MODEL, head_dim=MODEL.intermediate_size)),
        replace(RUN, dtype="bf16", **tricks),
        replace(RUN, model=replace(MODEL, use_qk_norm=True)),
        replace(RUN, tiled_loss_compute=True, tiled_loss_engine="torch"),
        replace(RUN, compile=True),
        replace(RUN, method="ulysses+tp"),
        replace(RUN, method="tsp"),
        replace(RUN, world_size=4, micro_batch_size=2, model=replace(MODEL, intermediate_size=64)),
    ):
        assert theory_memory.peak_activation_bytes(run) is None
