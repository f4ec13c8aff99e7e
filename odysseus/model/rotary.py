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

    Angles are fp32 whatever `dtype` is, as the published models were trained. Yarn multiplies cos
    and sin, so that attention scores grow by the square.
    """
    angles = position_ids[..., None, None].float() * rotary_frequencies(
        architecture, position_ids.device
    )
    table = torch.stack([angles.cos(), angles.sin()])
    factor = attention_factor(architecture)
    return (table if factor == 1 else table * factor).to(dtype)


def attention_factor(architecture: Architecture) -> float:
    """Return yarn's factor of cos and sin; 1 with any other scaling."""
    a = architecture
    if a.rope_type != "yarn" or a.rope_factor == 1.0:
        return 1.0
    return a.rope_attention_factor or 0.1 * math.log(max(1.0, a.rope_factor)) + 1


def rotary_frequencies(architecture: Architecture, device: torch.device) -> Tensor:
    """Return radians per token for each of the K/2 pairs, fp32, scaled as the architecture says."""
    a = architecture
    exponents = torch.arange(0, a.head_dim, 2, dtype=torch.int64, device=device).float()
    frequencies = 1.0 / a.rope_theta ** (exponents / a.head_dim)
    if a.rope_factor == 1.0:
        return frequencies
    keep = {"llama3": _kept_by_llama3, "linear": _kept_by_none, "yarn": _kept_by_yarn}
    kept = keep[a.rope_type](a, frequencies)
    return (1 - kept) * frequencies / a.rope_factor + kept * frequencies


def _kept_by_none(a: Architecture, frequencies: Tensor) -> Tensor:
    return torch.zeros_like(frequencies)


def _kept_by_llama3(a: Architecture, frequencies: Tensor) -> Tensor:
    """Return how far each frequency is kept by Llama 3.1: long wavelengths are stretched by the
    factor, short ones kept, and those between are blended (transformers.modeling_rope_utils)."""
    turns = a.rope_original_max_position_embeddings / (2 * math.pi / frequencies)
    low, high = a.rope_low_freq_factor, a.rope_high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)


def _kept_by_yarn(a: Architecture, frequencies: Tensor) -> Tensor:
    """Return how far each frequency is kept by yarn: blended between two pairs, rounded to whole
    ones, that make `rope_beta_fast` and `rope_beta_slow` turns in the original length (Peng et al.,
    arXiv 2309.00071 §3.2)."""

    def pair(turns: float) -> float:
        wavelength = a.rope_original_max_position_embeddings / (2 * math.pi * turns)
        return a.head_dim * math.log(wavelength) / (2 * math.log(a.rope_theta))

    first = max(math.floor(pair(a.rope_beta_fast)), 0)
    last = min(math.ceil(pair(a.rope_beta_slow)), a.head_dim - 1)
    pairs = torch.arange(len(frequencies), dtype=torch.float32, device=frequencies.device)
    width = last - first or 0.001
    return 1 - ((pairs - first) / width).clamp(0, 1)
