"""Configurations of tiny models of Transformers: a family each, and what differs inside one."""

from __future__ import annotations

from typing import Any

from transformers import (
    GemmaConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Starcoder2Config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "output_router_logits": True}


def _rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **options}}


CONFIGS = {
    "llama": LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
    "uneven": LlamaConfig(
        **SIZES | {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48}
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=64),
    "qwen2": Qwen2Config(**SIZES | {"num_key_value_heads": 4}),
    "qwen3": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    "gemma": GemmaConfig(**SIZES | {"num_key_value_heads": 1}, head_dim=16),
    "phi3": Phi3Config(**SIZES, bos_token_id=None, eos_token_id=None),
    "phi": PhiConfig(**SIZES),
    "granite": GraniteConfig(**SIZES, attention_multiplier=0.2, logits_scaling=3.0),
    "olmo2": Olmo2Config(**SIZES),
    "starcoder2": Starcoder2Config(**SIZES),
    "biased": LlamaConfig(**SIZES, mlp_bias=True, attention_bias=True),
    "window": MistralConfig(**SIZES, sliding_window=17),
    "some_windows": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=10, max_window_layers=1
    ),
    "linear": LlamaConfig(**SIZES, **_rope("linear", factor=4.0)),
    "yarn": Qwen3Config(
        **SIZES, head_dim=16, **_rope("yarn", factor=4.0, original_max_position_embeddings=16)
    ),
    "dynamic": LlamaConfig(**SIZES, max_position_embeddings=16, **_rope("dynamic", factor=2.0)),
    "longrope": Phi3Config(
        **SIZES | {"bos_token_id": None, "eos_token_id": None},
        max_position_embeddings=64,
        original_max_position_embeddings=40,
        **_rope(
            "longrope",
            short_factor=[1.0, 1.5, 2.0, 2.5],
            long_factor=[2.0, 3.0, 4.0, 5.0],
            original_max_position_embeddings=40,
        ),
    ),
    "mixtral": MixtralConfig(**SIZES, **EXPERTS, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, **EXPERTS, num_experts=4, moe_intermediate_size=24, decoder_sparse_step=1
    ),
    "gpt_oss": GptOssConfig(
        **SIZES, **EXPERTS, num_local_experts=4, head_dim=16, sliding_window=16
    ),
}
