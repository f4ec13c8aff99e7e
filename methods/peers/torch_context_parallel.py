"""PyTorch's experimental context parallelism: its load-balanced ring attention, weights in FSDP2.

PyTorch's dispatcher does not know the CPU's flash attention, so the kernel is passed to the ring as
an argument.

B batch, s this rank's tokens, H query heads, G kv heads, F either of these, K elements per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor.experimental._context_parallel import _attention as ring

from methods.peers.fsdp import Trainer, sharded
from odysseus.config.run import RunConfig
from odysseus.parallel.mesh import Axis, Mesh

_SEQUENCE = 2
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHsK: Tensor, k_BGsK: Tensor, v_BGsK: Tensor, axis: Axis) -> Tensor:
        heads = q_BHsK, k_BGsK, v_BGsK
        o, logsumexp = ring._templated_ring_attention(
            axis.group, _SEQUENCE, _FLASH, *heads, is_causal=True
        )
        ctx.save_for_backward(*heads, o, logsumexp)
        ctx.axis = axis
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, logsumexp = ctx.saved_tensors
        qkv_grads = ring._templated_ring_attention_backward(
            ctx.axis.group,
            _SEQUENCE,
            _FLASH_BACKWARD,
            grads[0],
            "grad_out",
            *(q, k, v, o, logsumexp),
            is_causal=True,
            dropout_p=0.0,
        )
        return *qkv_grads, None


def build(run: RunConfig, mesh: Mesh, part: str = "model") -> Trainer:
    """Build the trainer of PyTorch's context parallelism."""

    def attend(*heads_BsFK: Tensor) -> Tensor:
        o_BHsK = _RingAttention.apply(*(x.transpose(1, 2) for x in heads_BsFK), mesh.ring)
        return o_BHsK.transpose(1, 2)

    return sharded(run, mesh, part, attend)
