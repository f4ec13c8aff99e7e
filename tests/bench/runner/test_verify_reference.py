"""verify: the reference training, and the samples that reference and candidate read."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from bench.runner import verify
from odysseus.config.run import DataOptions, ModelOptions, OptimizerOptions, RunConfig
from odysseus.io.text import Samples

OTHER = RunConfig(
    method="ulysses",
    model=ModelOptions(name_or_path="small", type="liger", num_hidden_layers=2),
    world_size=4,
    sequence_parallel_size=2,
    ring_parallel_size=2,
    ring_order="contiguous",
    ring_backend="allgather",
    axis_order="sp-ring-dp",
    seq_len=16,
    micro_batch_size=3,
    gradient_accumulation_steps=2,
    dtype="bf16",
    seq_parallel_communication_data_type="bf16",
    reduce_bucket_size=5,
    zero_prefetch=False,
    zero_engine="overlap",
    reshard_after_forward=False,
    overlap_chunks=2,
    activation_checkpointing=True,
    activation_checkpoint_cpu_offload=True,
    host_memory_limit_bytes=10**9,
    tiled_mlp_compute=True,
    tiled_loss_compute=True,
    tiled_loss_bytes=9,
    tiled_loss_engine="torch",
    regather=False,
    ulysses_all_to_all="yunchang",
    vocab_parallel="head",
    tensor_parallel_size=2,
    expert_parallel_size=2,
    ulysses_head_chunks=2,
    optimizer=OptimizerOptions(learning_rate=0.5, offload="cpu"),
    parameter_offload="cpu",
    expandable_segments=False,
    numa_binding="none",
    compile=True,
    data=DataOptions(path="somewhere", repeat=True),
    steps=7,
    warmup_steps=9,
    rounds=4,
    seed=3,
    timeout_s=11,
    log="wandb",
    log_dir="elsewhere",
    device="cpu",
    dry_run=True,
    hardware="h100-80g",
    rank=1,
    router_load="zipf",
)
SAME_TRAINING = {"world_size", "seq_len", "micro_batch_size", "gradient_accumulation_steps"}
SAME_TRAINING |= {"dtype", "data", "steps", "seed", "timeout_s", "device", "expandable_segments"}
SAME_TRAINING |= {"numa_binding"}


def test_the_reference_is_the_same_training_with_every_trick_off() -> None:
    """Each field has the run's value, or its default, which is off."""
    found, default = verify.reference_of(OTHER), RunConfig()
    # The method has taken attention and mlp in: both are always "own".
    for name in {f.name for f in fields(RunConfig)} - {"attention", "mlp"}:
        assert getattr(OTHER, name) != getattr(default, name), name
        if name in SAME_TRAINING:
            assert getattr(found, name) == getattr(OTHER, name), name
        elif name not in ("model", "optimizer", "sequence_parallel_size"):
            assert getattr(found, name) == getattr(default, name), name
    assert found.model == replace(OTHER.model, type="torch")
    assert found.optimizer == OptimizerOptions(learning_rate=0.5)
    assert (found.sequence_size, found.data_parallel_size) == (1, 4)
    assert (found.tiles_loss, found.recomputes, found.optimizer_on_host) == (False,) * 3
    assert verify.candidate_of(OTHER) == replace(OTHER, gradient_accumulation_steps=16)


def read_in_a_step(run: RunConfig, step: int) -> list[list[int]]:
    """Return the samples that all replicas of a run read, shards joined, in any order."""
    found: list[list[int]] = []
    for replica in range(run.data_parallel_size):
        shards = [
            Samples(run, replica, shard, torch.device("cpu")).step(step)
            for shard in range(run.shards)
        ]
        for micro in zip(*shards, strict=True):
            found += torch.cat([batch.input_ids for batch in micro], 1).tolist()
    return sorted(found)


@pytest.mark.parametrize("axes", [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)])
def test_reference_and_candidate_read_the_same_samples(axes: tuple[int, int]) -> None:
    ring, size = axes
    sizes = {"ring_parallel_size": ring, "sequence_parallel_size": size, "tensor_parallel_size": 1}
    run = replace(OTHER, data=DataOptions(), **sizes)
    for step in (0, 1, 5):
        samples = read_in_a_step(verify.reference_of(run), step)
        assert len(samples) == 4 * 3 * 2
        assert read_in_a_step(verify.candidate_of(run), step) == samples
