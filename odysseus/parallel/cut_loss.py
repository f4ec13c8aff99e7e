"""Losses with a head that is cut by vocabulary over ranks (Megatron-LM, arXiv 1909.08053 §3).

Each rank has some rows of the head's weight, and tokens of its own. The ranks gather the hidden
states of all their tokens, and each computes the logits of its own rows. Two small all-reduces
complete the softmax: of each token's largest logit, then of its sum of exponentials and its label's
logit. Each rank returns the sum of the losses of its own tokens; backward needs the gradient of
that sum to be the same number on all ranks.

Where the stream is replicated, every rank already has the hidden states of all tokens. Nothing is
gathered then, and a rank's gradient of them is the part of the sum that its own rows make.

T tokens of this rank, t of one tile, n ranks, m = n shards of a replicated stream, else 1, D width,
v rows of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from odysseus.model.loss import IGNORED_LABEL, add_weight_gradient, scaled, wide
from odysseus.model.pending import Pending
from odysseus.parallel import collectives, transfers
from odysseus.parallel.mesh import Axis


@dataclass(frozen=True)
class Rows:
    """The rows of the head's weight that this rank has, and the hidden states that it is given.

    Attributes:
        axis: The ranks that have all rows together.
        first: Index of this rank's first row in the vocabulary.
        replicated: Whether hidden states are those of all ranks' tokens, the first rank's first,
            instead of this rank's alone.
    """

    axis: Axis
    first: int
    replicated: bool = False

    def shards(self, hidden_TD: Tensor) -> Tensor:
        """View hidden states of m ranks' tokens as [m, T, D]."""
        return hidden_TD.unflatten(0, (self.axis.size if self.replicated else 1, -1))

    def start_gather(self, hidden_mtD: Tensor) -> Pending:
        """Start gathering the hidden states of all ranks' tokens, [n, t, D]."""
        if self.replicated:
            return Pending(lambda: hidden_mtD)
        return transfers.start_all_gather(hidden_mtD[0], self.axis)

    def start_scatter(self, gradient_ntD: Tensor) -> Pending:
        """Start summing gradients over the ranks, for each rank those of its hidden states:
        [m, t, D]."""
        if self.replicated:
            return Pending(lambda: gradient_ntD)
        return transfers.start_reduce_scatter(gradient_ntD, self.axis, 0)

    def own(self, losses_nt: Tensor) -> Tensor:
        """Return the sum of the losses of this rank's own tokens, given those of all ranks."""
        return losses_nt.view(self.axis.size, -1)[self.axis.rank].sum()


def untiled(hidden_TD: Tensor, weight_vD: Tensor, labels_T: Tensor, rows: Rows) -> Tensor:
    """Compute this rank's logits of all ranks' tokens at once; every tiled loss equals this one."""
    return _of_tile(rows.shards(hidden_TD), weight_vD, _gathered(labels_T, rows), rows)


def checkpointed(
    hidden_TD: Tensor, weight_vD: Tensor, labels_T: Tensor, tile: int, rows: Rows
) -> Tensor:
    """Compute each tile under activation checkpointing: backward gathers its tokens again."""
    parts = rows.shards(hidden_TD).split(tile, dim=1)
    labels = _gathered(labels_T, rows).split(tile, dim=1)
    tiles = [
        checkpoint(
            *(_of_tile, h, weight_vD, y, rows), use_reentrant=False, preserve_rng_state=False
        )
        for h, y in zip(parts, labels, strict=True)
    ]
    return torch.stack(tiles).sum()


def fused(hidden_TD: Tensor, weight_vD: Tensor, labels_T: Tensor, tile: int, rows: Rows) -> Tensor:
    """Take gradients in forward while a tile's logits exist; scale them in backward.

    The next tile's tokens are gathered beside the matmuls of a tile's gradients, and the gradient
    of its tokens is reduce-scattered beside that of the weight.
    """
    return _Fused.apply(hidden_TD, weight_vD, labels_T, tile, rows)


ENGINES = {"fused": fused, "checkpoint": checkpointed}


def _gathered(labels_T: Tensor, rows: Rows) -> Tensor:
    """Return the labels of all ranks' tokens, [n, T]."""
    return transfers.start_all_gather(labels_T, rows.axis).wait()


def _of_tile(hidden_mtD: Tensor, weight_vD: Tensor, labels_nt: Tensor, rows: Rows) -> Tensor:
    hidden_ntD = hidden_mtD if rows.replicated else collectives.all_gather(hidden_mtD, rows.axis, 0)
    logits_tv = F.linear(hidden_ntD.flatten(0, 1), weight_vD)
    return _CrossEntropy.apply(logits_tv, labels_nt.flatten(), rows)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_tv: Tensor, labels_t: Tensor, rows: Rows) -> Tensor:
        gradient_tv = logits_tv.to(wide(logits_tv), copy=True)
        losses_t = _replace_logits_by_gradient_(gradient_tv, labels_t, rows)
        ctx.save_for_backward(gradient_tv)
        ctx.dtype = logits_tv.dtype
        return rows.own(losses_t)

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None]:
        (scale,), (gradient_tv,) = grads, ctx.saved_tensors
        return (gradient_tv * scale).to(ctx.dtype), None, None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_vD: Tensor, labels_T: Tensor, tile: int, rows: Rows
    ) -> Tensor:
        loss = hidden_TD.new_zeros((), dtype=wide(hidden_TD))
        grad_hidden_TD, grad_weight_vD = torch.empty_like(hidden_TD), None
        parts = rows.shards(hidden_TD).split(tile, dim=1)
        grad_parts = rows.shards(grad_hidden_TD).split(tile, dim=1)
        labels = _gathered(labels_T, rows).split(tile, dim=1)
        gathered = rows.start_gather(parts[0])
        for index, grad_hidden_mtD in enumerate(grad_parts):
            hidden_tD = gathered.wait().flatten(0, 1)
            grad_logits_tv = F.linear(hidden_tD, weight_vD).to(loss.dtype)
            labels_t = labels[index].flatten()
            loss += rows.own(_replace_logits_by_gradient_(grad_logits_tv, labels_t, rows))
            if index + 1 < len(parts):
                gathered = rows.start_gather(parts[index + 1])
            if any(ctx.needs_input_grad):
                grad_logits_tv = grad_logits_tv.to(weight_vD.dtype)
                gradient_ntD = (grad_logits_tv @ weight_vD).unflatten(0, labels[index].shape)
                scattered = rows.start_scatter(gradient_ntD)
                if ctx.needs_input_grad[1]:
                    grad_weight_vD = add_weight_gradient(grad_weight_vD, grad_logits_tv, hidden_tD)
                grad_hidden_mtD.copy_(scattered.wait())
                del gradient_ntD, scattered
            del grad_logits_tv, hidden_tD  # before the next tile's
        ctx.save_for_backward(grad_hidden_TD, grad_weight_vD)
        return loss

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None, None]:
        return *scaled(ctx, grads[0]), None, None, None


def _replace_logits_by_gradient_(logits_tv: Tensor, labels_t: Tensor, rows: Rows) -> Tensor:
    """Return each token's loss, [t]; overwrite logits by its gradient, softmax minus one-hot."""
    ignored_t = labels_t == IGNORED_LABEL
    labels_t = labels_t - rows.first
    elsewhere_t = (labels_t < 0) | (labels_t >= logits_tv.shape[1])
    labels_t1 = labels_t.masked_fill(elsewhere_t, 0).unsqueeze(1)
    largest_t1 = logits_tv.amax(1, keepdim=True)
    transfers.all_reduce_plain(largest_t1, rows.axis, dist.ReduceOp.MAX)
    logits_tv.sub_(largest_t1)
    picked_t = logits_tv.gather(1, labels_t1).squeeze(1).masked_fill_(elsewhere_t, 0)
    sums_2t = torch.stack([logits_tv.exp_().sum(1), picked_t])
    transfers.all_reduce_plain(sums_2t, rows.axis)
    total_t, picked_t = sums_2t
    logits_tv.div_(total_t.unsqueeze(1))
    one_t1 = (~elsewhere_t).to(logits_tv.dtype).unsqueeze(1)
    logits_tv.scatter_add_(1, labels_t1, -one_t1)
    logits_tv.masked_fill_(ignored_t.unsqueeze(1), 0)
    return (total_t.log() - picked_t).masked_fill(ignored_t, 0)
