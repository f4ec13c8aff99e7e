"""Gradient reduction in buckets: how much is reduced at once, the numbers, and the memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.utils._python_dispatch import _disable_current_modes

from bench.meters.memory import MemoryMeter
from bench.meters.watcher import Watcher
from methods import METHODS
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.io.text import Samples
from odysseus.parallel.mesh import make_mesh
from odysseus.parallel.zero_buckets import bucket_widths
from odysseus.training.trainer import Trainer
from tests.support.marks import slow
from tests.support.ranks import run_ranks

MODEL = ModelOptions(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
)
RUN = RunConfig(model=MODEL, seq_len=64, dtype="bf16")


@pytest.mark.parametrize(
    ("shard", "bucket", "ranks", "widths"),
    [
        (10, 8, 2, [4, 4, 2]),
        (8, 8, 2, [4, 4]),
        (8, 9, 2, [4, 4]),  # a bucket has equally many elements per rank
        (8, 100, 2, [8]),
        (3, 2, 4, [1, 1, 1]),  # and at least one
        (0, 8, 2, []),
    ],
)
def test_bucket_widths(shard: int, bucket: int, ranks: int, widths: list[int]) -> None:
    assert bucket_widths(shard, bucket, ranks) == widths


class Reductions(Watcher):
    """Counts the reduce-scatters of gradients by (elements, dtype)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[int, str]] = Counter()

    def observe(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        if func.name() == "c10d::_reduce_scatter_base_" and self.region.startswith("FSDP::"):
            self.seen[args[1].numel(), str(args[1].dtype)] += 1


def reductions(runs: list[RunConfig]) -> list[tuple[Counter[tuple[int, str]], str]]:
    """The reductions and a digest of the gradients of each run's first step on this rank."""
    found = []
    for run in runs:
        mesh = make_mesh(torch.device("cpu"), run)
        trainer = Trainer(run, METHODS[run.method], mesh)
        batches = Samples(run, mesh.replica, mesh.shard, mesh.device).step(0)
        with Reductions() as watcher:
            trainer.forward_backward(batches)
        digest = hashlib.sha256()
        for _, gradient in trainer.gradients():
            digest.update(gradient.contiguous().numpy().tobytes())
        found.append((watcher.seen, digest.hexdigest()))
    return found


BUCKETS = (500, 1001, 4000)


@pytest.mark.parametrize("travels", ["fp32", "bf16"])
def test_buckets_bound_reductions_and_change_no_bit(travels: Any) -> None:
    """Two ranks' sum is one addition of the same two numbers in the same dtype, in any bucket:
    widening bf16 is exact, and an addition is the same in either order."""
    base = replace(RUN, world_size=2, seq_parallel_communication_data_type=travels)
    for method in ("tp_sp", "odysseus"):
        whole, *bucketed = [
            replace(base, method=method, reduce_bucket_size=size) for size in (0, *BUCKETS)
        ]
        for (seen, gradients), *ranks in run_ranks(reductions, 2, [whole, *bucketed]):
            everything = sum(elements * count for (elements, _), count in seen.items())
            assert max(seen)[0] > max(BUCKETS)
            for bucket, (parts, found) in zip(BUCKETS, ranks, strict=True):
                assert bucket // 2 * 2 == max(parts)[0]
                assert {dtype for _, dtype in parts} == {f"torch.{LONG[travels]}"}
                assert sum(elements * count for (elements, _), count in parts.items()) == everything
                assert found == gradients


LONG = {"fp32": "float32", "bf16": "bfloat16"}


def test_replicas_of_cut_weights_reduce_in_buckets_too() -> None:
    """DP 2 x SP 2: cut weights are reduced over 2 ranks, the others over 4."""
    run = replace(RUN, method="tp_sp", world_size=4, sequence_parallel_size=2)
    run = replace(run, reduce_bucket_size=1002)
    for ((seen, _),) in run_ranks(reductions, 4, [run]):
        assert sorted(elements for elements, _ in seen)[-2:] == [1000, 1002]


def memory_of_reductions(runs: list[RunConfig]) -> list[list[tuple[int, int, int]]]:
    """Elements, ranks and bytes allocated of each reduction of each run on this rank.

    A meter runs only while FSDP2 reduces, but not while it copies gradients into its buffer. That
    copy is one kernel on CUDA; on CPU it is several kernels with workspace.
    """
    found: list[list[tuple[int, int, int]]] = []

    def metered(params: list[Any], gradients: list[torch.Tensor], group: Any, *rest: Any) -> Any:
        elements = sum(g.numel() for g in gradients)
        with MemoryMeter() as meter:
            result = reduce(params, gradients, group, *rest)
        found[-1].append((elements, group.size(), meter.peak().bytes))
        return result

    def unseen(*arguments: Any) -> None:
        with _disable_current_modes():
            copy_in(*arguments)

    reduce, copy_in = _fsdp_param_group.foreach_reduce, collectives.foreach_reduce_scatter_copy_in
    with (
        patch.object(_fsdp_param_group, "foreach_reduce", metered),
        patch.object(collectives, "foreach_reduce_scatter_copy_in", unseen),
    ):
        for run in runs:
            found.append([])
            mesh = make_mesh(torch.device("cpu"), run)
            trainer = Trainer(run, METHODS[run.method], mesh)
            samples = Samples(run, mesh.replica, mesh.shard, mesh.device)
            trainer.forward_backward(samples.step(0))
    return found


@pytest.mark.parametrize("size", [2, slow(4)])
def test_a_bucket_takes_four_bytes_an_element(size: int) -> None:
    """Bytes that the sum of E bf16 gradients of a unit over n ranks allocates in fp32, exactly.

    Without buckets FSDP2 copies them all into fp32: 4·E, and 4·E/n for this rank's sum. With
    buckets the copy is bf16, 2·E, the sum is 4·E/n as before, and one bucket at a time is
    converted: 4·b, b the bucket rounded down to as many elements per rank, or the unit where
    that is less. (DeepSpeed takes 8·b: it flattens the converted gradients into a buffer.)

    In bf16 all is half of that: the unit's copy 2·E, the sum 2·E/n and a bucket's copy 2·b, none
    where the bucket is the unit; after that the sum becomes fp32, as shards are, 4·E/n.
    """
    base = replace(RUN, world_size=size, method="odysseus")
    runs = [replace(base, reduce_bucket_size=bucket) for bucket in (0, *BUCKETS, 10**6)]
    narrow = replace(base, seq_parallel_communication_data_type="bf16")
    runs += [replace(narrow, reduce_bucket_size=bucket) for bucket in (0, *BUCKETS, 10**6)]
    for rank in run_ranks(memory_of_reductions, size, runs):
        for run, units in zip(runs, rank, strict=True):
            units = [unit for unit in units if unit[1] > 1]
            assert len(units) == 3  # the head, what of the block is not cut, the embedding
            for elements, ranks, allocated in units:
                assert ranks == size
                sum_elements, bucket = elements // size, run.reduce_bucket_size
                copied = min(elements, bucket // size * size)
                if run.reduce_dtype == torch.float32:
                    closed = (2 if bucket else 4) * elements + 4 * sum_elements + 4 * copied
                else:
                    copied = copied if copied < elements else 0
                    closed = 2 * elements + 2 * sum_elements + max(2 * copied, 4 * sum_elements)
                assert allocated == closed, run
