"""Run published configurations as dry runs, for the table in docs/validation.md.

python -m scripts.validation.longest    about 15 minutes
"""

from __future__ import annotations

import time
from dataclasses import replace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.planner import longest
from bench.simulator import cuda_kernels, dry_run
from bench.simulator.peak import peak_in_words
from odysseus.config.run import ModelOptions, OptimizerOptions, RunConfig

GIB = 2**30
ALST = RunConfig(
    method="ulysses",
    model=ModelOptions(name_or_path="llama3-8b"),
    world_size=8,
    dtype="bf16",
    dry_run=True,
    hardware="h100-80g",
    activation_checkpointing=True,
    tiled_loss_compute=True,
    optimizer=OptimizerOptions(offload="cpu"),
)
ALL_TRICKS = replace(ALST, activation_checkpoint_cpu_offload=True, tiled_mlp_compute=True)
UNTIED = replace(ALL_TRICKS, optimizer=OptimizerOptions(), seq_len=3_145_728)
"""torchtitan keeps optimizer and fp32 weights on the GPUs."""
LONGEST = {
    "ALST, 8 GPUs, no offload, no tiled MLP": (ALST, 1_100_000),
    "ALST, 8 GPUs": (ALL_TRICKS, 3_800_000),
    "ALST, 1 GPU": (replace(ALL_TRICKS, world_size=1, parameter_offload="cpu"), 500_000),
    "Untied Ulysses, 8 GPUs": (replace(UNTIED, ulysses_head_chunks=4), 5_242_880),
}
"""A run and the longest sequence that was published for it."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalize like Transformers' LlamaRMSNorm: keep x in fp32 and the unweighted result."""
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """Compute SwiGLU like Transformers' LlamaMLP, which also keeps silu(gate)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def main() -> None:
    predict("with this project's kernels")
    fused = cuda_kernels.kernels("flash_attention_2")
    unfused = replace(fused, rms_norm=rms_norm, swiglu=swiglu)
    with patch.object(cuda_kernels, "kernels", lambda *_: unfused):
        predict("with the norm and SwiGLU of Transformers, not fused")


def predict(how: str) -> None:
    print(how)
    for name, (run, published) in LONGEST.items():
        started = time.monotonic()
        result = longest.longest(run, lambda seq_len, need: None)
        error = result.seq_len / published - 1
        print(f"{name}: {published} tokens published, {result.seq_len} predicted ({error:+.1%})")
        print(f"  {result.limit} is short; {time.monotonic() - started:.0f} s")
        counted = dry_run.counted(replace(run, seq_len=result.seq_len))
        print("  " + peak_in_words(counted.rank, counted.peak).replace("\n", "\n  "))
    for chunks in (1, 4):
        run = replace(UNTIED, ulysses_head_chunks=chunks)
        peak = dry_run.counted(run).peak
        kinds = {kind: f"{size / GIB:.1f}" for kind, size in peak.by_kind.items()}
        print(
            f"{run.seq_len} tokens, {chunks} chunks of heads: {peak.bytes / GIB:.1f} GiB, {kinds}"
        )


if __name__ == "__main__":
    main()
