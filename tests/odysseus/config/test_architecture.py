"""Presets against the published config.json of each model, written out here a second time."""

from __future__ import annotations

from dataclasses import fields

import pytest

from odysseus.config.architecture import PRESETS, Architecture

LLAMA3 = {
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_original_max_position_embeddings": 8192,
}
PUBLISHED = {
    # (vocabulary, width, MLP width, layers, heads, kv heads, head size), then what is not a default
    "tiny": ((256, 256, 768, 4, 8, 4, 32), {"rms_norm_eps": 1e-5, "rope_theta": 10_000.0}),
    "small": ((256, 1024, 2816, 8, 16, 8, 64), {"rms_norm_eps": 1e-5, "rope_theta": 10_000.0}),
    "llama2-7b": (
        (32_000, 4096, 11_008, 32, 32, 32, 128),
        {"rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "rope_factor": 1.0},
    ),
    "llama3-8b": ((128_256, 4096, 14_336, 32, 32, 8, 128), LLAMA3),
    "llama3-70b": ((128_256, 8192, 28_672, 80, 64, 8, 128), LLAMA3),
    "qwen3-32b": (
        (151_936, 5120, 25_600, 64, 64, 8, 128),
        {"rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "rope_factor": 1.0, "use_qk_norm": True},
    ),
    "mixtral-8x7b": (
        (32_000, 4096, 14_336, 32, 32, 8, 128),
        {
            **{"rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "rope_factor": 1.0},
            **{"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True},
        },
    ),
    "qwen3-30b-a3b": (
        (151_936, 2048, 768, 48, 32, 4, 128),
        {
            **{"rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "rope_factor": 1.0},
            **{"use_qk_norm": True, "num_experts": 128, "num_experts_per_tok": 8},
        },
    ),
}
SWITCHES = (
    *("attention_bias", "attention_output_bias", "mlp_bias", "use_qk_norm", "tie_word_embeddings"),
    "sliding_window",
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_model(name: str) -> None:
    preset, (sizes, others) = PRESETS[name], PUBLISHED[name]
    names = [f.name for f in fields(Architecture)][: len(sizes)]
    assert {name: getattr(preset, name) for name in names} == dict(zip(names, sizes, strict=True))
    assert {name: getattr(preset, name) for name in others} == others
    assert [s for s in SWITCHES if getattr(preset, s)] == [s for s in SWITCHES if others.get(s)]


def test_every_preset_is_written_out() -> None:
    assert PRESETS.keys() == PUBLISHED.keys()
