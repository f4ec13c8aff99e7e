"""Configurations of published models as Hugging Face writes them."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 5e5,
}

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 20.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 1e4,
}

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}

CONFIGS = {
    "llama": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama_biased": LlamaConfig(
        **SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama_linear": LlamaConfig(**SIZES, rope_parameters=LINEAR),
    "mistral": MistralConfig(**SIZES, sliding_window=None, head_dim=32),
    "mistral_window": MistralConfig(**SIZES, sliding_window=4096),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
    "qwen3_yarn": Qwen3Config(**SIZES, head_dim=16, rope_parameters=YARN),
}
