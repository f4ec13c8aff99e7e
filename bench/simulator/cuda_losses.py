"""Stand-ins for tiled losses that have their own path on CUDA, in bf16, for dry runs.

Each allocates, keeps for backward and launches what the original does there.
tests/fake_cuda/test_stand_ins.py compares them with it. T tokens of this rank, t tokens of a tile,
D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.simulator.launch import host_reads, launch
from odysseus.model.loss import IGNORED_LABEL


def liger(hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, tile: int) -> Tensor:
    """Stand for :func:`odysseus.model.liger.fused_linear_cross_entropy` of liger-kernel 0.8.5 (its
    ops/fused_linear_cross_entropy.py), on GPUs since sm_80."""
    return _Liger.apply(hidden_TD, weight_VD, labels_T)


def linear_cross_entropy(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, tile: int
) -> Tensor:
    """Stand for :func:`odysseus.model.loss.linear_cross_entropy` of PyTorch 2.13 (its
    nn/modules/linear_cross_entropy.py), which is compact in bf16."""
    return _LinearCrossEntropy.apply(hidden_TD, weight_VD, labels_T, tile)


ENGINES = {"liger": liger, "torch": linear_cross_entropy}


def _liger_tile(hidden_TD: Tensor, weight_VD: Tensor) -> int:
    """Return the tokens of Liger's tiles: their logits have about as many elements as hidden."""
    (tokens, width), vocabulary = hidden_TD.shape, len(weight_VD)
    wanted = -(-tokens // -(-vocabulary // width))
    return min(tokens, 1 << (wanted - 1).bit_length())


class _Liger(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
        tokens, tile = len(labels_T), _liger_tile(hidden_TD, weight_VD)
        grad_hidden_TD = torch.zeros_like(hidden_TD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        losses_T = hidden_TD.new_zeros(tokens, dtype=torch.float32)
        labelled_T = labels_T != IGNORED_LABEL
        host_reads(labelled_T.sum())
        logits_tV = hidden_TD.new_empty(tile, len(weight_VD))
        for first in range(0, tokens, tile):
            rows = slice(first, first + tile)
            hidden, logits = hidden_TD[rows], logits_tV[: len(hidden_TD[rows])]
            torch.mm(hidden, weight_VD.t(), out=logits)
            launch("liger::cross_entropy", [logits, labels_T[rows]], [logits, losses_T[rows]])
            losses_T[rows] = losses_T[rows]
            torch.mm(logits, weight_VD, out=grad_hidden_TD[rows])
            _add_product_(grad_weight_VD, logits.t(), hidden)
        del logits_tV, logits  # pyrefly: ignore  there are tokens
        loss = losses_T.sum()
        ctx.save_for_backward(grad_hidden_TD, grad_weight_VD.to(weight_VD.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (scale,), (grad_hidden_TD, grad_weight_VD) = grads, ctx.saved_tensors
        host_reads(scale.new_ones(()))  # whether the scale is 1, which it is not
        for grad in (grad_hidden_TD, grad_weight_VD):
            launch("liger::element_mul", [grad, scale], [grad])
        return grad_hidden_TD, grad_weight_VD, None


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product of narrow matrices to a sum in fp32, as cuBLAS does in one kernel."""
    torch.addmm(total, left, right, out_dtype=torch.float32, out=total)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, tile: int
    ) -> Tensor:
        tokens, width, wide = *hidden_TD.shape, torch.float32
        tile = min(tile, tokens)
        logits_tV = hidden_TD.new_empty((tile, len(weight_VD)), dtype=wide)
        numbers_t = hidden_TD.new_empty(tile, dtype=wide)
        loss = hidden_TD.new_zeros(())
        grad_hidden_TD = torch.empty_like(hidden_TD)
        grad_weight_VD = torch.zeros_like(weight_VD)
        ignored_T = labels_T == IGNORED_LABEL
        labels_T = torch.where(ignored_T, 0, labels_T)
        minus_T = (~ignored_T).to(wide).neg_()
        hidden_wide_tD = hidden_TD.new_empty((tile, width), dtype=wide)
        for first in range(0, tokens, tile):
            rows = slice(first, first + tile)
            hidden, labels, minus = hidden_TD[rows], labels_T[rows], minus_T[rows]
            logits, numbers, hidden_wide = (
                buffer[: len(hidden)] for buffer in (logits_tV, numbers_t, hidden_wide_tD)
            )
            hidden_wide.copy_(hidden)
            torch.mm(hidden, weight_VD.T, out_dtype=wide, out=logits)
            logits.sub_(torch.amax(logits, 1, keepdim=True, out=numbers[:, None]))
            loss.add_(minus.dot(logits.gather(1, labels[:, None]).squeeze(1)))
            total = logits.exp_().sum(1, dtype=wide)
            torch.mul(logits, torch.div(minus, total, out=numbers)[:, None], out=logits)
            loss.sub_(minus.dot(total.log_()))
            grad, narrow = grad_hidden_TD[rows], logits.to(weight_VD.dtype)
            torch.mul(weight_VD.index_select(0, labels), minus.to(grad.dtype)[:, None], out=grad)
            torch.addmm(grad, narrow, weight_VD, alpha=-1, out=grad)
            grad_weight_VD.addmm_(narrow.T, hidden, alpha=-1)
            rounded = logits_tV.view(grad.dtype)[: len(hidden), :width]
            rounded.copy_(hidden_wide.mul_(minus[:, None]))
            grad_weight_VD.index_add_(0, labels, rounded)
        ctx.save_for_backward(grad_hidden_TD, grad_weight_VD)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (scale,), (grad_hidden_TD, grad_weight_VD) = grads, ctx.saved_tensors
        # The gradients are outputs of the operation, so autograd makes gradients of them too.
        zeros = [torch.zeros_like(x) for x in ctx.saved_tensors]
        grad_hidden_TD.mul_(scale)
        grad_weight_VD.mul_(scale)
        del zeros
        return grad_hidden_TD, grad_weight_VD, None, None
