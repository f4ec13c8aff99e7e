"""Host memory and time of loading a checkpoint of 1.1 billion parameters."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from methods import METHODS
from odysseus.config import hf_config
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.parallel.mesh import make_mesh
from odysseus.parallel.sharding import huggingface_shapes
from odysseus.training.trainer import Trainer
from tests.support.ranks import run_ranks

GIB = 2**30
TINY_LLAMA = ModelOptions(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=64,
)


def most_bytes() -> int:
    """Return this process's peak memory since it was reset, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


def loaded(run: RunConfig) -> tuple[int, int, float]:
    """Load on this rank; return peak memory, the shard's bytes, and seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the most
    mesh, started = make_mesh(torch.device("cpu"), run), time.perf_counter()
    trainer = Trainer(run, METHODS[run.method], mesh)
    took = time.perf_counter() - started
    return most_bytes(), sum(view.nbytes for _, view in trainer.local_pieces()), took


@pytest.mark.slow
def test_a_rank_needs_its_shard_and_little_more(tmp_path: Path) -> None:
    """Everything that the process has, Python and PyTorch too, within its shard and 1 GiB."""
    architecture = RunConfig(model=TINY_LLAMA).architecture
    shapes = huggingface_shapes(architecture)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 1_100_048_384
    tensors = {n: torch.full(shape, 0.5, dtype=torch.bfloat16) for n, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    del tensors
    config = hf_config.to_config(architecture, 4096)
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = ModelOptions(name_or_path=str(tmp_path))
    for method in METHODS:
        run = RunConfig(model=model, method=method, world_size=4, seq_len=64, dtype="bf16")
        for most, shard, took in run_ranks(loaded, 4, run, fresh=True):
            print(f"{method}: {most / GIB:.2f} GiB, shard {shard / GIB:.2f} GiB, {took:.1f} s")
            assert most < shard + GIB
            assert took < 30
