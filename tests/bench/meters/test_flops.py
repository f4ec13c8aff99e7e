"""FLOPs of attention kernels, counted by shape, and the division of the causal mask's work in
rings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bench.meters.flops import _KERNELS, _OFFSETS, FlopMeter
from bench.theory import model_flops
from methods import METHODS
from odysseus.config.run import RunConfig
from odysseus.io.text import Samples
from odysseus.model.attention_choice import choose_attention
from odysseus.model.block_attention import choose_block_attention
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.ranks import run_ranks
from tests.support.runs import RUN

CPU = torch.device("cpu")


def test_kernels_by_hand() -> None:
    """Batch 2, 4 query heads on 2 kv heads of 8: two matmuls forward, five backward."""
    q, k = torch.randn(2, 6, 4, 8, requires_grad=True), torch.randn(2, 6, 2, 8)
    blocks = choose_block_attention("sdpa", CPU)
    with FlopMeter() as causal:
        o = choose_attention("sdpa", CPU, torch.float32)[1](q, k, k)
    assert causal.attention == 2 * (2 * 2 * 4 * 6 * 6 * 8) // 2
    with FlopMeter() as backward:
        o.sum().backward()
    assert backward.attention == 5 * (2 * 2 * 4 * 6 * 6 * 8) // 2
    with FlopMeter() as block:
        blocks.forward(q[:, 2:], k, k, False)
    assert block.attention == 2 * (2 * 2 * 4 * 4 * 6 * 8)


@pytest.mark.parametrize("name", [name for name in _KERNELS if name.startswith("aten::")])
def test_positions_of_arguments_match_the_schema(name: str) -> None:
    query_at, key_at, causal_at, *_ = _KERNELS[name]
    arguments = getattr(torch.ops.aten, name.removeprefix("aten::")).default._schema.arguments
    names = [arguments[at].name for at in (query_at, key_at, causal_at)]
    assert names == ["query", "key", "is_causal"]
    assert name not in _OFFSETS or arguments[_OFFSETS[name]].name == "cum_seq_q"


def measured(runs: list[RunConfig]) -> list[tuple[int, int]]:
    """Measure FLOPs of attention and of matmuls in a step of each run on this rank."""
    torch.set_num_threads(1)
    mesh, found = make_mesh(CPU, runs[0]), []
    for run in runs:
        trainer = Trainer(run, METHODS[run.method], mesh)
        samples = Samples(run, mesh.replica, mesh.shard, CPU)
        with FlopMeter() as meter:
            trainer.step(samples.step(0))
        found.append((meter.attention, meter.matmul))
    return found


def whole(run: RunConfig) -> int:
    """Return the FLOPs of all ranks: causal, forward and backward, and forward again under
    checkpointing."""
    a, matmuls = run.architecture, 7 + 2 * run.recomputes
    block_flops = matmuls * 2 * run.micro_batch_size * run.seq_len**2 * a.query_width // 2
    return block_flops * a.num_hidden_layers


@pytest.mark.parametrize("backend", ["native", "allgather"])
def test_zigzag_is_balanced_and_contiguous_is_not(backend: str) -> None:
    """Ring rank r of 8 computes an equal part, or 2r+1 of 64 parts: the last has 1.875 times the
    mean."""
    zigzag = replace(
        RUN, method="ulysses", world_size=8, ring_parallel_size=8, ring_backend=backend, seq_len=128
    )
    contiguous = replace(zigzag, ring_order="contiguous", activation_checkpointing=True)
    ranks = run_ranks(measured, 8, [zigzag, contiguous])
    assert [attention for (attention, _), _ in ranks] == [whole(zigzag) // 8] * 8
    parts = whole(contiguous) // 64
    found = [attention for _, (attention, _) in ranks]
    assert found == [(2 * r + 1) * parts for r in range(8)]
    assert max(found) == 1.875 * whole(contiguous) / 8


@pytest.mark.parametrize("method", METHODS)
def test_every_method_does_its_share(method: str) -> None:
    """Heads are divided by the sequence axis, tokens by the ring; nothing is computed twice."""
    run = replace(RUN, method=method, world_size=4, ring_parallel_size=2, seq_len=64)
    matmuls = 6 * model_flops.matmul_parameters(run.architecture) * run.tokens_per_step
    assert run_ranks(measured, 4, [run]) == [[(whole(run) // 4, matmuls // 4)]] * 4


def test_recomputing_a_block_repeats_all_but_its_last_matmul() -> None:
    run = replace(RUN, method="ulysses", world_size=2)
    plain, again = run_ranks(measured, 2, [run, replace(run, activation_checkpointing=True)])[0]
    a = run.architecture
    block = a.hidden_size * (2 * a.query_width + 2 * a.num_key_value_heads * a.head_dim)
    block += 2 * a.hidden_size * a.intermediate_size  # gate and up; down is not needed
    assert again[1] - plain[1] == 2 * block * a.num_hidden_layers * run.tokens_per_step // 2


def test_a_matmul_of_nothing_counts_nothing() -> None:
    """An expert may get no token."""
    with FlopMeter() as meter:
        torch.mm(torch.empty(3, 0), torch.empty(0, 2))
        torch.mm(torch.empty(0, 3), torch.empty(3, 2))
    assert meter.matmul == 0


def test_grouped_matmuls_count_the_rows_of_all_groups() -> None:
    """Forward, and the gradients of rows and of weights, are as many FLOPs each."""
    x = torch.randn(32, 16, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(4, 8, 16, dtype=torch.bfloat16, requires_grad=True)
    ends = torch.tensor([3, 3, 20, 32], dtype=torch.int32)
    with FlopMeter() as meter:
        F.grouped_mm(x, weight.transpose(1, 2), offs=ends).square().sum().backward()
    assert meter.matmul == 3 * 2 * 32 * 16 * 8
