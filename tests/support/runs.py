"""The tiny model of the tests that train, its variants, and the run that holds it."""

from __future__ import annotations

from dataclasses import replace

from odysseus.config.run import ModelOptions, RunConfig

MODEL = ModelOptions(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
)

RUN = RunConfig(model=MODEL, seq_len=32, micro_batch_size=2, dtype="fp64")

VARIANTS = {
    "kv_heads_more_than_ranks": MODEL,
    "kv_heads_fewer_than_ranks": replace(MODEL, num_key_value_heads=1),
    "qwen": replace(
        MODEL,
        num_key_value_heads=2,
        use_qk_norm=True,
        attention_bias=True,
        attention_output_bias=True,
    ),
    "tied_llama3": replace(MODEL, tie_word_embeddings=True, mlp_bias=True, rope_factor=8.0),
    "ragged_rows": replace(MODEL, vocab_size=259, hidden_size=36),
}
