"""Measured bytes equal the closed form, to the byte, in every column."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.meters.traffic import bytes_sent
from bench.theory import traffic as theory_traffic
from methods import METHODS
from odysseus.config.run import OptimizerOptions, RunConfig
from tests.support.marks import slow
from tests.support.ranks import run_ranks
from tests.support.runs import MODEL, RUN, VARIANTS
from tests.support.traffic import measured_columns

Choose = Callable[[list[RunConfig]], list[RunConfig]]


def variants(world_size: int) -> list[RunConfig]:
    """Return every method, with the options that change its traffic, at one world size."""
    base = replace(RUN, dtype="fp32", world_size=world_size, micro_batch_size=1, seq_len=64)
    runs = []
    for method in METHODS:
        run = replace(base, method=method)
        runs += [
            run,
            replace(run, regather=False),
            replace(run, activation_checkpointing=True),
            replace(run, dtype="bf16"),
            replace(run, dtype="bf16", seq_parallel_communication_data_type="bf16"),
            replace(run, gradient_accumulation_steps=2, micro_batch_size=2),
            replace(run, model=VARIANTS["kv_heads_fewer_than_ranks"], regather=False),
            replace(run, model=VARIANTS["qwen"], activation_checkpointing=True),
            replace(run, model=VARIANTS["tied_llama3"]),
            replace(run, model=replace(MODEL, vocab_size=259)),
            replace(run, seq_len=296, micro_batch_size=2, tiled_mlp_compute=True),
            replace(run, tiled_mlp_compute=True, activation_checkpoint_cpu_offload=True),
            replace(run, tiled_mlp_compute=True, regather=False, activation_checkpointing=True),
            replace(run, reduce_bucket_size=4000, dtype="bf16"),
            replace(run, reduce_bucket_size=2500, seq_parallel_communication_data_type="bf16"),
            replace(run, tiled_loss_compute=False),
            replace(run, tiled_loss_compute=True, tiled_loss_bytes=4 * 512 * 5),
            replace(run, parameter_offload="cpu"),
            replace(run, optimizer=OptimizerOptions(offload="cpu")),
            replace(run, reshard_after_forward=False, gradient_accumulation_steps=2),
            replace(
                run,
                reshard_after_forward=False,
                activation_checkpointing=True,
                zero_engine="overlap",
            ),
        ]
        if world_size > 1:
            runs.append(replace(run, sequence_parallel_size=world_size // 2))
            runs.append(replace(run, sequence_parallel_size=1))
    return runs


def half(runs: list[RunConfig]) -> list[RunConfig]:
    """Half of the runs. As each method has an odd number of options, two methods have each."""
    return runs[::2]


def quarter(runs: list[RunConfig]) -> list[RunConfig]:
    """A quarter of the runs: one method has each option, or two if there are two rings."""
    return runs[::4]


@pytest.mark.parametrize(
    ("world_size", "chosen"),
    [(1, half), slow(1, list), slow(2, list), (4, quarter), slow(4, list), slow(8, half)],
)
def test_traffic_equals_theory(world_size: int, chosen: Choose) -> None:
    runs = chosen(variants(world_size))
    expected = [theory_traffic.step_traffic(run).columns for run in runs]
    for measured in run_ranks(measured_columns, world_size, runs):
        for run, columns, formula in zip(runs, measured, expected, strict=True):
            assert columns == formula, run


def ring_variants(world_size: int) -> list[RunConfig]:
    """Return every method on one or two rings, with the options that change a ring's traffic."""
    base = replace(RUN, dtype="fp32", world_size=world_size, micro_batch_size=1, seq_len=64)
    rings = {2: [2], 4: [2, 4], 8: [4]}[world_size]
    runs = []
    for method, ring in itertools.product(METHODS, rings):
        run = replace(base, method=method, ring_parallel_size=ring)
        runs += [
            run,
            replace(run, ring_order="contiguous", dtype="bf16"),
            replace(run, ring_backend="allgather", dtype="bf16", activation_checkpointing=True),
            replace(run, ring_backend="allgather", ring_order="contiguous", micro_batch_size=2),
            replace(run, activation_checkpoint_cpu_offload=True, tiled_mlp_compute=True),
            replace(run, model=VARIANTS["kv_heads_fewer_than_ranks"], parameter_offload="cpu"),
            replace(run, model=VARIANTS["qwen"], gradient_accumulation_steps=2),
            replace(run, sequence_parallel_size=1, reduce_bucket_size=4000),
            replace(run, reshard_after_forward=False),
        ]
    return runs


@pytest.mark.parametrize(
    ("world_size", "chosen"), [slow(2, list), (4, quarter), slow(4, list), slow(8, half)]
)
def test_traffic_of_rings_equals_theory(world_size: int, chosen: Choose) -> None:
    runs = chosen(ring_variants(world_size))
    for run in runs:
        run.check()
    expected = [theory_traffic.step_traffic(run).columns for run in runs]
    for measured in run_ranks(measured_columns, world_size, runs):
        for run, columns, formula in zip(runs, measured, expected, strict=True):
            assert columns == formula, run


def test_three_ranks_send_fractions() -> None:
    """Some tensors need a fraction of a byte in a ring of 3; columns round once, at the end."""
    model = replace(MODEL, num_attention_heads=6, num_key_value_heads=3, head_dim=8)
    run = replace(RUN, dtype="fp32", model=model, world_size=3, seq_len=48, method="tp_sp")
    (measured,) = run_ranks(measured_columns, 3, [run])[0]
    assert measured == theory_traffic.step_traffic(run).columns


def test_yunchang_exchange_sends_the_same_in_more_calls() -> None:
    native = replace(RUN, dtype="fp32", method="ulysses", world_size=4)
    yunchang = replace(native, ulysses_all_to_all="yunchang")
    own, peer = run_ranks(measured_columns, 4, [native, yunchang])[0]
    assert peer == theory_traffic.step_traffic(yunchang).columns
    assert own["comm_bytes_total"] == peer["comm_bytes_total"]
    assert own["comm_calls_total"] < peer["comm_calls_total"]


@pytest.mark.parametrize(
    ("collective", "expected"),
    [
        ("all_reduce", 1200),
        ("all_gather", 600),
        ("reduce_scatter", 600),
        ("all_to_all", 600),
        ("p2p", 800),
    ],
)
def test_bytes_by_hand(collective: str, expected: int) -> None:
    """800 bytes over 4 ranks: meter and theory share this function, so numbers stand here."""
    assert bytes_sent(collective, 800, 4) == expected
