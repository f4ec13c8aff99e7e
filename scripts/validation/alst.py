"""Measure the peak memory of ALST's own code, for docs/validation.md.

Three blocks of Llama-8B's size run a step on tensors without values, in a process group without
peers: DeepSpeed's UlyssesSPAttentionHF and TiledMLP, Transformers' decoder layer, Liger's functions
with no Triton kernel launched, and reentrant checkpointing with a block's input on the host, as in
ArcticTraining's monkey patch. FlashAttention-2 is that of bench/simulator/cuda_kernels.py. Weights
and their gradients are not counted. Two lengths give a slope in units of one rank's stream (U,
2 bytes x tokens x width) and a constant part. Without offloading, each further block adds 1 U.

python -m scripts.validation.alst    needs DeepSpeed, einops and liger_kernel; 15 s
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.utils.checkpoint
from deepspeed.runtime.sequence_parallel import ulysses_sp
from deepspeed.sequence import layer
from liger_kernel.ops import rms_norm, rope, swiglu
from liger_kernel.transformers.rms_norm import LigerRMSNorm
from liger_kernel.transformers.rope import liger_rotary_pos_emb
from liger_kernel.transformers.swiglu import LigerSwiGLUMLP
from torch import Tensor, nn
from torch.profiler import record_function
from transformers import LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as llama

from bench.meters.memory import MemoryMeter, Peak
from bench.simulator.cuda_kernels import kernels
from bench.simulator.dry_run import CUDA_ROUNDING_BYTES
from bench.simulator.fake_world import META, only_rank

WIDTH, BLOCKS, SHORT, LONG = 4096, 3, 65536, 131072
RUNS: dict[str, dict[str, Any]] = {
    "8 GPUs, 3.8M": {},
    "8 GPUs, 3.8M, had it been without Liger": {"liger": False},
    "8 GPUs, 2.4M: MLP not tiled": {"tiled": False},
    "8 GPUs, 1.1M: nor offloaded": {"tiled": False, "offload": False},
    "16 GPUs, 8M": {"ranks": 16},
    "1 GPU, 500K": {"ranks": 1},
}
_THEIRS = re.compile(r"/(deepspeed|transformers|liger_kernel|cuda_kernels)\b")


class Meter(MemoryMeter):
    """Record the line of ALST's code that made a tensor; autograd's own tensors have none."""

    def _add(self, storage: torch.UntypedStorage, kind: str, made_by: str) -> None:
        frame = sys._getframe(1)
        while frame is not None and not _THEIRS.search(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is not None:
            made_by += f" at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        super()._add(storage, kind, made_by)


class _NotLaunched:
    """Replacement of a Triton kernel that launches nothing."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *_, **__: None


class OffloadedCheckpoint(torch.autograd.Function):
    """Reentrant checkpointing with the first input on the host: the tensors it holds, as long."""

    @staticmethod
    def forward(ctx: Any, run: Any, preserve_rng_state: bool, x: Tensor, *rest: Any) -> Tensor:
        with record_function("odysseus::host"):
            ctx.save_for_backward(x.detach().clone())
        ctx.run, ctx.rest = run, rest
        with torch.no_grad():
            return run(x, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x = ctx.saved_tensors[0].clone().requires_grad_()
        with torch.enable_grad():
            output = ctx.run(x, *ctx.rest)
        torch.autograd.backward((output,), grads)
        return None, None, x.grad, *[None] * len(ctx.rest)


class Loss(torch.autograd.Function):
    """Loss that, like Liger's, has its input's gradient before backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.zeros_like(x))
        return x.new_empty(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return ctx.saved_tensors[0]


def flash(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Any:
    """Do the work of Transformers' flash_attention_forward."""
    return kernels("flash_attention_2").attend(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    ), None


def tiled_mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    """Do the work of ArcticTraining's tiled_mlp_forward_common."""

    def of_tile(mlp: Any, x: Tensor) -> Tensor:
        return mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))

    tiles = -(-x.shape[1] // WIDTH)
    return ulysses_sp.TiledMLP.apply(of_tile, mlp, x, tiles, list(mlp.parameters()))


@contextmanager
def patched(ranks: int, liger: bool, tiled: bool, offload: bool) -> Iterator[None]:
    """Apply ALST's monkey patches."""
    changes: list[tuple[Any, str, Any]] = [(ulysses_sp, "dist", dist), (layer, "dist", dist)]
    changes += [(llama, "create_causal_mask", lambda **_: None)]
    for module in (rms_norm, rope, swiglu):
        kernels = [n for n in vars(module) if n.endswith("_kernel") or n == "_triton_rope"]
        changes += [(module, name, _NotLaunched()) for name in kernels]
    if liger:
        changes += [(llama, "LlamaRMSNorm", LigerRMSNorm)]
        changes += [(llama, "apply_rotary_pos_emb", liger_rotary_pos_emb)]
    if tiled:
        changes += [(llama.LlamaMLP, "forward", tiled_mlp)]
    elif liger:
        changes += [(llama, "LlamaMLP", LigerSwiGLUMLP)]
    if offload:
        changes += [(torch.utils.checkpoint, "CheckpointFunction", OffloadedCheckpoint)]
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(patch.object(*change))
        attend = flash
        if ranks > 1:
            attend = ulysses_sp.UlyssesSPAttentionHF(
                flash, 1, 32, 128, 8, BLOCKS, dist.group.WORLD, seq_length_is_variable=True
            ).forward
        ALL_ATTENTION_FUNCTIONS.register("ulysses", attend)
        yield


def peak(
    tokens: int, ranks: int = 8, liger: bool = True, tiled: bool = True, offload: bool = True
) -> Peak:
    """Peak of one rank's second step, with this number of tokens per rank."""
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=14336, num_hidden_layers=BLOCKS, vocab_size=8,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=tokens * ranks,
    )  # fmt: skip
    config._attn_implementation = "ulysses"
    with only_rank(0, ranks, True), patched(ranks, liger, tiled, offload):
        with META:
            model = llama.LlamaModel(config).to(torch.bfloat16).train()
            ids = torch.arange(tokens)[None]
        model.gradient_checkpointing_enable({"use_reentrant": True, "preserve_rng_state": False})
        for _ in range(2):
            with Meter(CUDA_ROUNDING_BYTES) as meter:
                meter.watch([*model.parameters(), *model.buffers(), ids], "parameters")
                meter.watch((p.grad for p in model.parameters() if p.grad is not None), "gradients")
                output = model(ids, position_ids=ids, use_cache=False)
                loss = Loss.apply(output.last_hidden_state)
                del output
                loss.backward()
                meter.watch((p.grad for p in model.parameters() if p.grad is not None), "gradients")
    return meter.peak("activations", "communication")


def main() -> None:
    for name, settings in RUNS.items():
        short, long = peak(SHORT, **settings), peak(LONG, **settings)
        unit = 2 * WIDTH * LONG
        slope = (long.bytes - short.bytes) / (unit - 2 * WIDTH * SHORT)
        print(f"{name}: {slope:.2f} U and {(long.bytes - slope * unit) / 2**30:.2f} GiB")
        alike = Counter((a.bytes, a.made_by) for a in long.alive if a.bytes > unit / 100)
        for (size, made_by), count in sorted(alike.items(), key=lambda i: -i[0][0] * i[1]):
            print(f"  {count} x {size / unit:5.2f} U  {made_by}")


if __name__ == "__main__":
    main()
