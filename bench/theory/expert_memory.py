"""Closed forms of the memory of whole experts: what they keep, and what backward needs.

Cut experts need more. T tokens of a rank, K experts per token, R = T·K rows, E experts, D width of
the stream, I width of an expert.
"""

from __future__ import annotations

import torch

from odysseus.config.run import RunConfig

_INDEX = 8
"""Bytes of an index."""


def saved_bytes(run: RunConfig) -> int:
    """Return the bytes that a block's experts save beside the normed input.

    They are the rows [R, D]; gate and up, their product, and that times the rows' weights, [R, I]
    each; and what the router keeps.
    """
    return _rows_bytes(run) + 4 * _unit_bytes(run) + _router_bytes(run)


def backward_bytes(run: RunConfig) -> int:
    """Return the most bytes of a block's experts in their backward: at the down projection, or
    where the rows' weights have multiplied the product."""
    row_weights_bytes = _row_count(run) * run.compute_dtype.itemsize
    at_down = 2 * _rows_bytes(run) + 5 * _unit_bytes(run)
    at_weights = _rows_bytes(run) + 6 * _unit_bytes(run) + row_weights_bytes
    return max(at_down, at_weights) + _router_bytes(run)


def sums_bytes(run: RunConfig) -> int:
    """Return the bytes of the sums that the routers' losses are made of, in fp64."""
    a = run.architecture
    return 8 * (2 * a.num_experts + 2) * bool(a.router_aux_loss_coef or a.router_z_loss_coef)


def _router_bytes(run: RunConfig) -> int:
    """Return the bytes that the router keeps: scores [T, E], K of them and their sum, the experts'
    numbers, two orders of the rows, the weight of each row, and the experts' last rows; with losses
    the logits too."""
    a, wide = run.architecture, torch.promote_types(run.compute_dtype, torch.float32).itemsize
    tokens, rows = run.local_tokens, _row_count(run)
    numbers = tokens * a.num_experts * wide + rows * run.compute_dtype.itemsize
    if a.norm_topk_prob:
        numbers += (rows + tokens) * wide
    if a.router_aux_loss_coef or a.router_z_loss_coef:
        numbers += tokens * a.num_experts * run.compute_dtype.itemsize
    return numbers + 3 * rows * _INDEX + a.num_experts * 4


def _row_count(run: RunConfig) -> int:
    return run.local_tokens * run.architecture.num_experts_per_tok


def _rows_bytes(run: RunConfig) -> int:
    """Return the bytes of one [R, D] tensor."""
    return _row_count(run) * run.architecture.hidden_size * run.compute_dtype.itemsize


def _unit_bytes(run: RunConfig) -> int:
    """Return the bytes of one [R, I] tensor."""
    return _row_count(run) * run.architecture.intermediate_size * run.compute_dtype.itemsize
