"""Sizes of a model that a run overrides: each reaches the architecture, within its bounds."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

import pytest

from odysseus.config.architecture import PRESETS, Architecture
from odysseus.config.nested import ModelOptions
from odysseus.config.run import RunConfig


def model(**overrides: Any) -> ModelOptions:
    return ModelOptions(**overrides)


OF_EXPERTS: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "scoring_func": "sigmoid",
    "norm_topk_prob": False,
    "shared_expert_intermediate_size": 64,
    "router_aux_loss_coef": 0.1,
    "router_z_loss_coef": 0.01,
}
"""Overrides that are valid together only."""


@pytest.mark.parametrize(
    "name", [f.name for f in fields(Architecture) if f.type == "int" and f.name not in OF_EXPERTS]
)
def test_sizes_are_at_least_1(name: str) -> None:
    sizes = asdict(PRESETS["tiny"]) | {name: 0}
    with pytest.raises(ValueError, match=rf"^model\.{name} is 0; it must be at least 1$"):
        Architecture(**sizes)


OVERRIDES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-3,
    "rope_theta": 5e5,
    "rope_factor": 8.0,
    "rope_low_freq_factor": 2.0,
    "rope_high_freq_factor": 8.0,
    "rope_original_max_position_embeddings": 4096,
    "rope_type": "yarn",
    "rope_beta_fast": 16.0,
    "rope_beta_slow": 2.0,
    "rope_attention_factor": 1.5,
    "attention_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "use_qk_norm": True,
    "tie_word_embeddings": True,
    "sliding_window": 65536,
}


@pytest.mark.parametrize(("name", "value"), OVERRIDES.items())
def test_an_override_reaches_the_architecture(name: str, value: Any) -> None:
    tiny = PRESETS["tiny"]
    follows = {"hidden_size": 64, "num_attention_heads": 16}  # head_dim, unless it is given too.
    expected = {name: value} | ({"head_dim": follows[name]} if name in follows else {})
    assert getattr(tiny, name) != value
    assert RunConfig(model=model(**{name: value})).architecture == replace(tiny, **expected)


def test_every_model_option_is_an_override_and_a_given_head_dim_stays() -> None:
    options = [f.name for f in fields(ModelOptions)]
    about = ["name_or_path", "implementation", "type", "attn_implementation"]
    assert options == [*about, *OVERRIDES, *OF_EXPERTS]
    with_experts = replace(PRESETS["tiny"], **OF_EXPERTS)
    assert RunConfig(model=model(**OF_EXPERTS)).architecture == with_experts
    assert RunConfig(model=model(**OVERRIDES)).architecture == replace(PRESETS["tiny"], **OVERRIDES)


def test_false_and_zero_are_overrides_too() -> None:
    qwen = model(name_or_path="qwen3-32b", use_qk_norm=False, rms_norm_eps=0.0)
    assert qwen.overrides == {"rms_norm_eps": 0.0, "use_qk_norm": False}
    assert not RunConfig(model=qwen).architecture.use_qk_norm


def test_the_architecture_follows_a_replaced_model() -> None:
    run = RunConfig()
    assert run.architecture == PRESETS["tiny"]
    changed = replace(run, model=replace(run.model, name_or_path="llama3-8b"))
    assert changed.architecture == PRESETS["llama3-8b"]


def test_label_names_the_preset_and_what_was_changed() -> None:
    assert model().label == "tiny"
    assert model(name_or_path="llama3-8b", attn_implementation="sdpa").label == "llama3-8b"
    assert model(num_hidden_layers=2, use_qk_norm=False).label == (
        "tiny(num_hidden_layers=2, use_qk_norm=False)"
    )
