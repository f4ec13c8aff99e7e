"""Liger-Kernel's kernels (arXiv 2410.10989) behind this project's interfaces, for comparison.

They are written in Triton, for CUDA; tests run them on a CPU in Triton's interpreter
(TRITON_INTERPRET=1). The package is imported inside functions, so that nothing else needs it.

Liger overwrites some of the tensors that it is given, unseen by autograd's version counters. Each
function below says which tensors, and why no other code reads them. Backward runs once per graph.

B batch, S tokens, D width, F heads of a packed tensor, H and G heads of its parts, K elements per
head, k = K/2, T tokens of this rank, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.model.attention import split_heads


def check(run: RunConfig, device: torch.device) -> None:
    """Raise ValueError if Liger cannot compute a run's loss engine or dtype.

    :func:`odysseus.model.kernels.check_kernels` checks Liger's other kernels.
    """
    if run.tiled_loss_engine == "liger":
        require("tiled_loss_engine", "auto, fused, checkpoint, torch", device)
    if run.dtype == "fp64" and "liger" in (run.model.type, run.loss_engine):
        raise ValueError("dtype = fp64 is wider than Liger's kernels compute in; valid: fp32, bf16")


def require(setting: str, others: str, device: torch.device) -> None:
    """Raise ValueError, naming the setting's other values, unless Liger can run on a device."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"{setting} = liger needs CUDA; valid on {device.type}: {others}")
    if importlib.util.find_spec("liger_kernel") is None:
        raise ValueError(
            f"{setting} = liger needs the package liger-kernel; valid without it: {others}"
        )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute :func:`odysseus.model.kernels.rms_norm`; saves contiguous x and one number per row.

    Backward overwrites the gradient that it is given with the gradient of x. In a decoder the one
    matmul (or rotation, or loss) that reads the norm has just made that gradient. A residual
    addition, which would give one tensor to two readers, never reads a norm.
    """
    from liger_kernel.ops import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, weight, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """Compute :func:`odysseus.model.kernels.swiglu`; saves only its input.

    This is Liger's kernel for a packed input: given two halves, which are not contiguous, Liger
    would copy both. Backward overwrites gate_up with its gradient, so it runs once (a second time
    is a RuntimeError). A matmul saves its inputs for backward, never its output, so no other code
    reads gate_up.
    """
    from liger_kernel.ops import LigerFusedGateUpSiLUMulFunction

    rows = gate_up.flatten(0, -2)  # Liger's gradient has rows of 2·I, whatever the input's shape.
    y = LigerFusedGateUpSiLUMulFunction.apply(rows, True)
    return y.view(*gate_up.shape[:-1], rows.shape[1] // 2)  # -1 has no meaning without rows


def rotary(
    x: Tensor, table: Tensor, heads: int, rotate: Callable[..., tuple[Tensor, Tensor]] | None = None
) -> Tensor:
    """Compute :func:`odysseus.model.kernels.rotary_` out of place; saves only the table.

    Liger rotates two contiguous tensors, queries and keys, in place. They are copied out of the
    packed tensor and then into a new one: three passes, where this project's kernel has one.
    Backward rotates the gradient in place where it is contiguous: only attention, or the rotated
    heads, made it, and no other code reads it.

    Args:
        rotate: The kernel; by default Liger's.
    """
    if rotate is None:
        from liger_kernel.ops import LigerRopeFunction

        rotate = LigerRopeFunction.apply
    # Liger pads each tensor's heads to a power of two. In most models this split is q and k.
    x_BSFK = split_heads(x, 2 * table.shape[-1])
    first = 2 ** max(0, (heads - 1).bit_length() - 1)
    q_BSHK, k_BSGK, passed = x_BSFK.split([first, heads - first, x_BSFK.shape[2] - heads], dim=2)
    if heads == 1:  # Liger needs heads in both tensors, so the one head is rotated twice.
        k_BSGK = q_BSHK
    cos_BSk, sin_BSk = table.squeeze(3)
    rotated = rotate(
        _copy_for_liger(q_BSHK),
        _copy_for_liger(k_BSGK),
        *(cos_BSk, sin_BSk, None, 1, x_BSFK.shape[-1]),
    )
    parts = [x_BHSK.transpose(1, 2) for x_BHSK in rotated[: min(heads, 2)]]
    return torch.cat([*parts, passed], dim=2).view_as(x)


def _copy_for_liger(x_BSHK: Tensor) -> Tensor:
    """Copy x into a contiguous tensor, viewed as [B, H, S, K], that Liger may overwrite."""
    return x_BSHK.clone(memory_format=torch.contiguous_format).transpose(1, 2)


def fused_linear_cross_entropy(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, tile: int
) -> Tensor:
    """Compute a tiled loss (:mod:`odysseus.model.loss`) with Liger, gradients taken in forward.

    Liger sizes its tiles itself, so `tile` is not used. A tile has min(T, p) tokens, where p is the
    smallest power of two that is at least ceil(T / ceil(V / D)). For V up to D that is one tile.
    Else a tile's logits, in the dtype of hidden, have about as many elements as hidden and at most
    twice as many, whatever V is. For long sequences that may be more than ``tiled_loss_bytes``.

    Weight gradients are summed over tiles in fp32 and rounded to the weight's dtype; they exist
    only if hidden needs a gradient too. Liger overwrites its own logits, and in backward the
    gradients that it saved. The host waits for the GPU once in forward and once in backward.
    """
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    loss, *_ = LigerFusedLinearCrossEntropyFunction.apply(
        hidden_TD,
        weight_VD,
        labels_T,
        None,  # Bias.
        None,  # Weights of classes.
        -100,  # The label that is ignored.
        0.0,  # Scale of a squared normalizer (z-loss).
        0.0,  # Label smoothing.
        "sum",
        None,  # Cap of logits.
        False,  # Whether to return the z-loss.
        torch.float32,  # The dtype of the weight gradient's sum.
    )
    return loss
