"""yunchang's zigzag ring attention around the plain model; weights in FSDP2.

yunchang's ring computes with flash-attn, which needs CUDA. On a CPU PyTorch's flash attention
replaces that kernel; the communication along the ring stays yunchang's. Only bf16 is valid: in fp32
the backward accumulates into the tensor that the kernel overwrites with the next block's gradient.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from methods.peers.fsdp import Trainer, sharded
from odysseus.config.run import RunConfig
from odysseus.model.block_attention import CPU_FLASH
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.yunchang import yunchang_ring


def _forward(q: Tensor, k: Tensor, v: Tensor, *_: Any, causal: bool, **__: Any) -> Any:
    return CPU_FLASH.forward(q, k, v, causal)


def _backward(*arguments: Any, **_: Any) -> None:
    """Write the gradients into the given tensors."""
    *inputs, grad_q, grad_k, grad_v, _dropout, _scale, causal = arguments[:12]
    for target, grad in zip(
        (grad_q, grad_k, grad_v), CPU_FLASH.backward(*inputs, causal), strict=True
    ):
        target.copy_(grad)


_STAGES = {"fwd-only": _forward, "bwd-only": _backward}


def compute_on_cpu() -> None:
    """Make yunchang's rings of both orders compute with PyTorch's flash attention, for CPUs."""
    for name in ("ring_flash_attn", "zigzag_ring_flash_attn"):
        module = importlib.import_module(f"yunchang.ring.{name}")
        setattr(module, "select_flash_attn_impl", lambda _type, stage, **_: _STAGES[stage])  # noqa: B010


def build(run: RunConfig, mesh: Mesh, part: str = "model") -> Trainer:
    """Build the trainer of yunchang's ring attention."""
    if mesh.device.type == "cpu":
        compute_on_cpu()
    return sharded(run, mesh, part, yunchang_ring(mesh.ring, run.ring_order))
