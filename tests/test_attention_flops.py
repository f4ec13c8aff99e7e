"""FLOPs of attention kernels: counted by shape, and how rings spread the causal mask's work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.attention_flops import _KERNELS, AttentionMeter
from methods import METHODS
from odysseus.attention import choose_attention, choose_block_attention
from odysseus.config import RunConfig
from odysseus.data import Samples
from odysseus.mesh import make_mesh
from odysseus.step import Trainer
from tests.ranks import run_ranks
from tests.test_parity import RUN

CPU = torch.device("cpu")


def test_kernels_by_hand() -> None:
    """Batch 2, 4 query heads on 2 kv heads of 8: two matmuls forward, five backward."""
    q, k = torch.randn(2, 6, 4, 8, requires_grad=True), torch.randn(2, 6, 2, 8)
    blocks = choose_block_attention("sdpa", CPU)
    with AttentionMeter() as causal:
        o = choose_attention("sdpa", CPU, torch.float32)[1](q, k, k)
    assert causal.flops == 2 * (2 * 2 * 4 * 6 * 6 * 8) // 2
    with AttentionMeter() as backward:
        o.sum().backward()
    assert backward.flops == 5 * (2 * 2 * 4 * 6 * 6 * 8) // 2
    with AttentionMeter() as block:
        blocks.forward(q[:, 2:], k, k, False)
    assert block.flops == 2 * (2 * 2 * 4 * 4 * 6 * 8)


@pytest.mark.parametrize("name", [name for name in _KERNELS if name.startswith("aten::")])
def test_arguments_are_where_the_schema_has_them(name: str) -> None:
    query_at, key_at, causal_at, *_ = _KERNELS[name]
    arguments = getattr(torch.ops.aten, name.removeprefix("aten::")).default._schema.arguments
    names = [arguments[at].name for at in (query_at, key_at, causal_at)]
    assert names == ["query", "key", "is_causal"]


def measured(runs: list[RunConfig]) -> list[int]:
    """Attention FLOPs of a step of each run on this rank."""
    torch.set_num_threads(1)
    mesh, found = make_mesh(CPU, runs[0]), []
    for run in runs:
        trainer = Trainer(run, METHODS[run.method], mesh)
        samples = Samples(run, mesh.replica, mesh.shard, CPU)
        with AttentionMeter() as meter:
            trainer.step(samples.step(0))
        found.append(meter.flops)
    return found


def whole(run: RunConfig) -> int:
    """Of all ranks: causal, forward and backward, with the forward again under checkpointing."""
    a, matmuls = run.architecture, 7 + 2 * run.recomputes
    of_block = matmuls * 2 * run.micro_batch_size * run.seq_len**2 * a.query_width // 2
    return of_block * a.num_hidden_layers


@pytest.mark.parametrize("backend", ["native", "allgather"])
def test_zigzag_is_balanced_and_contiguous_is_not(backend: str) -> None:
    """Place r of 8: every one the same, or 2r+1 of 64 parts: the last 1.875 times the mean."""
    zigzag = replace(
        RUN, method="ulysses", world_size=8, ring_parallel_size=8, ring_backend=backend, seq_len=128
    )
    contiguous = replace(zigzag, ring_order="contiguous", activation_checkpointing=True)
    ranks = run_ranks(measured, 8, [zigzag, contiguous])
    assert [flops for flops, _ in ranks] == [whole(zigzag) // 8] * 8
    parts = whole(contiguous) // 64
    assert [flops for _, flops in ranks] == [(2 * r + 1) * parts for r in range(8)]
    assert max(flops for _, flops in ranks) == 1.875 * whole(contiguous) / 8


@pytest.mark.parametrize("method", METHODS)
def test_every_method_does_its_share(method: str) -> None:
    """Heads by the sequence axis, tokens by the ring; nothing twice."""
    run = replace(RUN, method=method, world_size=4, ring_parallel_size=2, seq_len=64)
    assert run_ranks(measured, 4, [run]) == [[whole(run) // 4]] * 4
