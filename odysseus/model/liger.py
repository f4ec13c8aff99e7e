"""Liger-Kernel's kernels (arXiv 2410.10989) behind this project's interfaces, to compare with.

They are written in Triton, for CUDA; on a CPU Triton's interpreter runs them (TRITON_INTERPRET=1),
for tests. The package is imported where it is used, so that nothing else needs it. Liger writes
over tensors that it is given, unseen by autograd's version counters: each function says which, and
why nobody else reads them. A graph is gone back through once. B batch, S tokens, D width, F heads
of a packed tensor, H and G those of its parts, K elements of a head, k = K/2, T tokens of this
rank, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.model.attention import split_heads


def check(run: RunConfig, device: torch.device) -> None:
    """Raise ValueError if a run wants what Liger cannot compute: loss engine, dtype.

    Its other kernels are :func:`odysseus.model.kernels.choose_kernels`'s to check.
    """
    if run.tiled_loss_engine == "liger":
        require("tiled_loss_engine", "auto, fused, checkpoint, torch", device)
    if run.dtype == "fp64" and "liger" in (run.model.type, run.loss_engine):
        raise ValueError("dtype = fp64 is more than Liger's kernels compute in; valid: fp32, bf16")


def require(setting: str, others: str, device: torch.device) -> None:
    """Raise ValueError, naming the setting's other values, unless Liger can run on a device."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"{setting} = liger needs CUDA; valid on {device.type}: {others}")
    if importlib.util.find_spec("liger_kernel") is None:
        raise ValueError(
            f"{setting} = liger needs the package liger-kernel; valid without it: {others}"
        )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As :func:`odysseus.model.kernels.rms_norm`. Keeps x, made contiguous, and one number a row.

    Backward writes the gradient of x over the one that it gets. In a decoder that is fresh from
    the one matmul (or rotation, or loss) that reads the norm; a residual addition, which would
    hand one tensor to two readers, never does.
    """
    from liger_kernel.ops import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, weight, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """As :func:`odysseus.model.kernels.swiglu`; keeps only its input.

    Liger's kernel for a packed input: for halves, which are not contiguous, it would copy both.
    Backward writes the gradient over gate_up, so it runs once (a second time is a RuntimeError).
    A matmul keeps its inputs for backward, never its output, so gate_up is nobody else's.
    """
    from liger_kernel.ops import LigerFusedGateUpSiLUMulFunction

    rows = gate_up.flatten(0, -2)  # Liger's gradient is one of rows, whatever it was given.
    return LigerFusedGateUpSiLUMulFunction.apply(rows, True).view(*gate_up.shape[:-1], -1)


def rotary(x: Tensor, table: Tensor, heads: int) -> Tensor:
    """As :func:`odysseus.model.kernels.rotary_`, but not in place; keeps the table alone.

    Liger turns two contiguous tensors, queries and keys, in place. What it turns is copied out of
    the packed tensor and then into the new one: three passes where this project's has one. Backward
    turns the gradient in place where it is contiguous: it is attention's or the rotated heads'
    alone, and nobody else reads it.
    """
    from liger_kernel.ops import LigerRopeFunction

    # Liger pads the heads of each tensor to a power of two; this cut is q and k in most models.
    x_BSFK = split_heads(x, 2 * table.shape[-1])
    first = 2 ** max(0, (heads - 1).bit_length() - 1)
    q_BSHK, k_BSGK, passed = x_BSFK.split([first, heads - first, x_BSFK.shape[2] - heads], dim=2)
    if heads == 1:  # Liger needs heads in both: the one is turned twice.
        k_BSGK = q_BSHK
    cos_BSk, sin_BSk = table.squeeze(3)
    turned = LigerRopeFunction.apply(
        _own(q_BSHK), _own(k_BSGK), cos_BSk, sin_BSk, None, 1, x_BSFK.shape[-1]
    )
    kept = [x_BHSK.transpose(1, 2) for x_BHSK in turned[: min(heads, 2)]]
    return torch.cat([*kept, passed], dim=2).view_as(x)


def _own(x_BSHK: Tensor) -> Tensor:
    """A contiguous copy that Liger may write over, in the order of dimensions that it expects."""
    return x_BSHK.clone(memory_format=torch.contiguous_format).transpose(1, 2)


def fused_linear_cross_entropy(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, tile: int
) -> Tensor:
    """A tiled loss engine (:mod:`odysseus.model.loss`): gradients are taken in forward.

    Liger sizes its tiles itself, so `tile` is not used: min(T, p) tokens each, p the smallest power
    of two from ceil(T / ceil(V / D)) on. For V up to D that is one tile; else a tile's logits, in
    the dtype of hidden, have about as many elements as hidden, up to twice as many, whatever V is.
    For long sequences that may be more than ``tiled_loss_bytes``.

    Weight gradients are summed over tiles in fp32 and rounded to the weight's dtype; there are none
    unless hidden has gradients too. Liger writes over its own logits, and in backward over the
    gradients it kept. The host waits for the GPU once in forward, once in backward.
    """
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    loss, *_ = LigerFusedLinearCrossEntropyFunction.apply(
        hidden_TD,
        weight_VD,
        labels_T,
        None,  # Bias.
        None,  # Weights of classes.
        -100,  # The label that counts nothing.
        0.0,  # Scale of a squared normalizer (z-loss).
        0.0,  # Label smoothing.
        "sum",
        None,  # Cap of logits.
        False,  # Whether to return the z-loss.
        torch.float32,  # Of the weight gradient's sum.
    )
    return loss
