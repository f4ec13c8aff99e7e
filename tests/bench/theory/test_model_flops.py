"""Model FLOPs if heads x head size differs from the model's width."""

from __future__ import annotations

from bench.theory import model_flops
from odysseus.config.nested import ModelOptions
from odysseus.config.run import RunConfig


def test_attention_counts_its_own_width() -> None:
    """qwen3-32b: width 5120, but 64 heads of 128 are 8192."""
    model = ModelOptions(name_or_path="qwen3-32b", num_hidden_layers=1)
    run = RunConfig(model=model, seq_len=4096)
    attention_weights = 2 * 5120 * 8192 + 2 * 5120 * 1024  # queries and output, keys and values
    matmuls = attention_weights + 3 * 5120 * 25_600 + 5120 * 151_936
    scores_and_values = 6 * 4096**2 * 8192  # causal: half of 2 matmuls, forward and twice backward
    assert model_flops.step_flops(run) == 6 * matmuls * 4096 + scores_and_values
