"""Rotary position embedding: the angle by which each position rotates each pair of elements.

B batch, S tokens, K elements per head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from odysseus.config.architecture import Architecture


def rotary_table(architecture: Architecture, position_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute cos and sin of every position's angles, [2, B or 1, S, 1, K/2], for all blocks.

    Angles are fp32 whatever `dtype` is, as the published models were trained.
    """
    angles = position_ids[..., None, None].float() * rotary_frequencies(
        architecture, position_ids.device
    )
    return torch.stack([angles.cos(), angles.sin()]).to(dtype)


def rotary_frequencies(architecture: Architecture, device: torch.device) -> Tensor:
    """Return radians per token for each of the K/2 pairs, fp32, with Llama-3's scaling."""
    a = architecture
    exponents = torch.arange(0, a.head_dim, 2, dtype=torch.int64, device=device).float()
    frequencies = 1.0 / a.rope_theta ** (exponents / a.head_dim)
    if a.rope_factor == 1.0:
        return frequencies
    # Llama 3.1's scaling: long wavelengths are stretched by the factor, short ones kept, and those
    # between are blended (transformers.modeling_rope_utils, "llama3").
    turns = a.rope_original_max_position_embeddings / (2 * math.pi / frequencies)
    low, high = a.rope_low_freq_factor, a.rope_high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * frequencies / a.rope_factor + keep * frequencies
