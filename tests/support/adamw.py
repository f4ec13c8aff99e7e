"""AdamW's published formula, step by step."""

from __future__ import annotations

import torch
from torch import Tensor

BETA1, BETA2, EPS, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01
"""PyTorch's defaults, which docs/columns.md and every recipe rely on."""


def adamw(weight: Tensor, gradients: list[Tensor], rate: float) -> Tensor:
    """Return the weight after one step per gradient (Loshchilov and Hutter, arXiv 1711.05101,
    algorithm 2)."""
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        weight = weight - rate * WEIGHT_DECAY * weight
        first = BETA1 * first + (1 - BETA1) * gradient
        second = BETA2 * second + (1 - BETA2) * gradient**2
        corrected = first / (1 - BETA1**step), second / (1 - BETA2**step)
        weight = weight - rate * corrected[0] / (corrected[1].sqrt() + EPS)
    return weight
