"""Model FLOPs of a step: those of the mathematics, whatever a method recomputes."""

from __future__ import annotations

from typing import Any

from odysseus.config.architecture import Architecture
from odysseus.config.run import RunConfig
from odysseus.parallel.sharding import huggingface_shapes

CONVENTION = "causal"
"""Attention counts the lower triangle only, half of the full square; recompute never counts."""


def step_flops(run: RunConfig) -> int:
    """FLOPs of one optimizer step over all ranks, forward and backward, causal attention.

    They are 6 per matmul parameter and token, and 6·L²·(H·K) per layer and sample for attention:
    forward is 2 matmuls of 2·L²·H·K, halved by the causal mask, and backward is twice forward
    (Korthikanti et al., arXiv 2205.05198 appendix A, with the mask counted). The embedding lookup
    counts nothing.
    """
    a = run.architecture
    attention = 6 * run.seq_len**2 * a.query_width * a.num_hidden_layers * run.samples_per_step
    return 6 * matmul_parameters(a) * run.tokens_per_step + attention


def speed_columns(run: RunConfig, step_ms: float, peak_flops_per_s: float | None) -> dict[str, Any]:
    """Return the row's columns of speed, from a step's time and a rank's peak rate, if it is known.

    FLOPs are left out for packed documents: those of attention depend on each sample's documents.
    """
    tokens_per_s = run.tokens_per_step / (step_ms / 1e3)
    speed = {"tokens_per_s": tokens_per_s, "tokens_per_s_per_gpu": tokens_per_s / run.world_size}
    if run.data.pack:
        return speed
    per_gpu = step_flops(run) / run.world_size / (step_ms / 1e3)
    mfu = {"mfu": per_gpu / peak_flops_per_s} if peak_flops_per_s else {}
    return speed | {"model_tflops_per_gpu": per_gpu / 1e12, "flops_convention": CONVENTION} | mfu


def matmul_parameters(architecture: Architecture) -> int:
    """Count the elements of all weight matrices that multiply a token's activations, with the head;
    of experts, those of a token."""
    a = architecture
    shapes = huggingface_shapes(a)
    count = sum(shape[0] * shape[1] for shape in shapes.values() if len(shape) == 2)
    if not a.tie_word_embeddings:
        count -= a.vocab_size * a.hidden_size
    idle = a.num_experts - a.num_experts_per_tok
    return count - 3 * idle * a.hidden_size * a.intermediate_size * a.num_hidden_layers
