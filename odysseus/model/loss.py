"""Sum of token losses from hidden states, whole or tile by tile without ever holding all logits.

T tokens of this rank, t tokens of one tile, D width, V vocabulary. Logits are the largest tensor of
long sequences: for 16K tokens and a vocabulary of 128K they take 8 GB in fp32, and a plain loss
holds several copies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from odysseus.config.groups import MemorySavings
from odysseus.config.run import RunConfig
from odysseus.model import liger

IGNORED_LABEL = -100

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""loss(hidden_TD, weight_VD, labels_T) -> the sum of token losses, a scalar of at least fp32.

Labels of -100 are ignored. Gradients are exact under any scale of the loss.
"""


def choose_loss(run: RunConfig, vocabulary: int) -> Loss:
    """Choose the function that computes a run's loss, given the size of the vocabulary."""
    if not run.tiles_loss:
        return whole_logits
    return partial(ENGINES[run.loss_engine], tile=most_tokens(run, vocabulary))


def loss_tile_tokens(run: RunConfig) -> int:
    """Return the number of tokens of the largest tile."""
    return min(run.local_tokens, most_tokens(run, run.architecture.vocab_size))


def most_tokens(run: MemorySavings, vocabulary: int) -> int:
    """Return how many tokens' fp32 logits fit in ``tiled_loss_bytes``; at least one."""
    return max(1, run.tiled_loss_bytes // (4 * vocabulary))


def whole_logits(hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    """Compute all logits at once; every tiled loss equals this one."""
    return cross_entropy_sum(F.linear(hidden_TD, weight_VD), labels_T)


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum token losses in at least fp32; labels of -100 add 0."""
    return F.cross_entropy(
        logits.flatten(0, -2).to(wide(logits)),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
    )


def checkpointed(hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, tile: int) -> Tensor:
    """Compute each tile under activation checkpointing: backward computes its logits again."""
    return checkpointed_head(partial(F.linear, weight=weight_VD), hidden_TD, labels_T, tile)


def checkpointed_head(
    head: Callable[[Tensor], Tensor], hidden_TD: Tensor, labels_T: Tensor, tile: int
) -> Tensor:
    """Do the same for any head: a function from hidden states [t, D] to logits [t, V]."""
    tiles = _checkpointed_tiles(head, cross_entropy_sum, hidden_TD, labels_T, tile)
    return torch.stack(tiles).sum()


def token_log_probs(
    head: Callable[[Tensor], Tensor], hidden_TD: Tensor, labels_T: Tensor, tile: int
) -> Tensor:
    """Return the log-probability of each label, [T] in at least fp32, tile by tile; 0 for -100."""
    return torch.cat(_checkpointed_tiles(head, log_probs, hidden_TD, labels_T, tile))


def log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each label, in at least fp32 and the labels' shape."""
    rows = logits.flatten(0, -2).to(wide(logits))
    losses = F.cross_entropy(rows, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    return -losses.view(labels.shape)


def _checkpointed_tiles(
    head: Callable[[Tensor], Tensor],
    function: Callable[[Tensor, Tensor], Tensor],
    hidden_TD: Tensor,
    labels_T: Tensor,
    tile: int,
) -> list[Tensor]:
    """Compute function(logits, labels) of each tile under activation checkpointing."""

    def of_tile(hidden_tD: Tensor, labels_t: Tensor) -> Tensor:
        return function(head(hidden_tD), labels_t)

    return [
        checkpoint(of_tile, h, y, use_reentrant=False, preserve_rng_state=False)
        for h, y in zip(hidden_TD.split(tile), labels_T.split(tile), strict=True)
    ]


def linear_cross_entropy(
    hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, tile: int
) -> Tensor:
    """Compute the loss in PyTorch's own chunks (2.13), which takes gradients in forward."""
    narrow = hidden_TD.dtype == torch.bfloat16
    # What PyTorch's "auto" chooses on CUDA and on a CPU; a dry run's device is neither.
    options = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=tile,
        chunking_method=None,
        acc_policy="accurate" if narrow and not hidden_TD.is_cuda else "compact",
        acc_dtype=torch.float32 if narrow else None,
    )
    return F.linear_cross_entropy(
        hidden_TD, weight_VD, labels_T, reduction="sum", ignore_index=IGNORED_LABEL, options=options
    )


def fused(hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, tile: int) -> Tensor:
    """Take gradients in forward while a tile's logits exist; scale them in backward.

    Liger-Kernel does the same (arXiv 2410.10989 §3.2). The scale is the gradient of the loss.
    """
    return _Fused.apply(hidden_TD, weight_VD, labels_T, tile)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, tile: int
    ) -> Tensor:
        loss = hidden_TD.new_zeros((), dtype=wide(hidden_TD))
        grad_hidden_TD, grad_weight_VD = torch.empty_like(hidden_TD), None
        for first in range(0, len(labels_T), tile):
            rows = slice(first, first + tile)
            grad_logits_tV = F.linear(hidden_TD[rows], weight_VD).to(loss.dtype)
            loss += _replace_logits_by_gradient_(grad_logits_tV, labels_T[rows])
            if any(ctx.needs_input_grad):
                grad_logits_tV = grad_logits_tV.to(weight_VD.dtype)
                torch.mm(grad_logits_tV, weight_VD, out=grad_hidden_TD[rows])
            if ctx.needs_input_grad[1]:
                grad_weight_VD = add_weight_gradient(
                    grad_weight_VD, grad_logits_tV, hidden_TD[rows]
                )
            del grad_logits_tV  # before the next tile's logits
        ctx.save_for_backward(grad_hidden_TD, grad_weight_VD)
        return loss

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None]:
        return *scaled(ctx, grads[0]), None, None


def scaled(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scale the gradients of hidden states and weight that a fused loss has saved in forward."""
    grad_hidden_TD, grad_weight_VD = ctx.saved_tensors
    autograd = torch._C._autograd  # pyrefly: ignore
    if autograd._get_current_graph_task_keep_graph():  # another backward may follow
        grad_hidden_TD = grad_hidden_TD.clone()
        grad_weight_VD = None if grad_weight_VD is None else grad_weight_VD.clone()
    if grad_weight_VD is not None:
        grad_weight_VD = grad_weight_VD.mul_(scale).to(grad_hidden_TD.dtype)
    return grad_hidden_TD.mul_(scale), grad_weight_VD


def _replace_logits_by_gradient_(logits_tV: Tensor, labels_t: Tensor) -> Tensor:
    """Return the sum of token losses; overwrite logits by its gradient, softmax minus one-hot.

    `logsumexp` is not used, because it would hold another copy of the logits.
    """
    ignored_t = labels_t == IGNORED_LABEL
    labels_t1 = labels_t.masked_fill(ignored_t, 0).unsqueeze(1)
    logits_tV.sub_(logits_tV.amax(1, keepdim=True))
    picked_t1 = logits_tV.gather(1, labels_t1)
    total_t1 = logits_tV.exp_().sum(1, keepdim=True)
    logits_tV.div_(total_t1)
    logits_tV.scatter_add_(1, labels_t1, -torch.ones_like(picked_t1))
    logits_tV.masked_fill_(ignored_t.unsqueeze(1), 0)
    return (total_t1.log_() - picked_t1).squeeze(1).masked_fill(ignored_t, 0).sum()


def add_weight_gradient(
    total_VD: Tensor | None, grad_logits_tV: Tensor, hidden_tD: Tensor
) -> Tensor:
    """Add one tile's weight gradient to the sum over tiles, which is in at least fp32."""
    if total_VD is None:
        return (grad_logits_tV.T @ hidden_tD).to(wide(hidden_tD))
    if total_VD.dtype == hidden_tD.dtype:
        return total_VD.addmm_(grad_logits_tV.T, hidden_tD)
    return total_VD.add_(grad_logits_tV.T @ hidden_tD)


def wide(x: Tensor) -> torch.dtype:
    """Return the dtype of logits and sums: that of x, at least fp32."""
    return torch.promote_types(x.dtype, torch.float32)


ENGINES = {
    "fused": fused,
    "checkpoint": checkpointed,
    "torch": linear_cross_entropy,
    "liger": liger.fused_linear_cross_entropy,
}
