"""config.json of Transformers' models, read and written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from odysseus.config import hf_config
from odysseus.config.architecture import PRESETS, Architecture
from tests.support.hf_configs import CONFIGS, LLAMA3, SIZES, YARN

READ = Architecture(**SIZES, head_dim=16, rms_norm_eps=1e-6)
LLAMA = SIZES | {"model_type": "llama"}


def of(folder: Path, **given: Any) -> Architecture:
    """Return the architecture read from a configuration with these fields changed."""
    (folder / "config.json").write_text(json.dumps(LLAMA | given))
    return hf_config.read(folder)


def test_what_transformers_writes(tmp_path: Path) -> None:
    expected = {
        "llama": replace(
            READ, rope_theta=5e5, rope_factor=8, rope_original_max_position_embeddings=32
        ),
        "llama_biased": replace(
            READ,
            attention_bias=True,
            attention_output_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
        ),
        "llama_linear": replace(READ, rope_type="linear", rope_factor=4),
        "mistral": replace(READ, head_dim=32),
        "mistral_window": replace(READ, sliding_window=4096),
        "qwen2": replace(READ, attention_bias=True),
        "qwen3": replace(READ, head_dim=32, use_qk_norm=True, tie_word_embeddings=True),
        "qwen3_yarn": replace(
            READ,
            use_qk_norm=True,
            rope_type="yarn",
            rope_factor=4,
            rope_beta_fast=20,
            rope_original_max_position_embeddings=32,
        ),
    }
    for name, config in CONFIGS.items():
        config.save_pretrained(tmp_path / name)
        assert hf_config.read(tmp_path / name) == expected[name], name


def test_as_transformers_4_wrote_it(tmp_path: Path) -> None:
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    found = of(tmp_path, rope_theta=5e5, rope_scaling=scaling, head_dim=None)
    assert (found.rope_theta, found.rope_factor, found.head_dim) == (5e5, 8, 16)


def test_of_both_rope_keys_the_one_that_transformers_takes(tmp_path: Path) -> None:
    plain = {"rope_type": "default", "rope_theta": 1e6}
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    found = of(tmp_path, rope_parameters=plain, rope_scaling=scaling)
    theirs = AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert (found.rope_factor, found.rope_theta) == (theirs["factor"], theirs["rope_theta"])


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_keys_that_are_not_there(kind: str, tmp_path: Path) -> None:
    """Mean what Transformers' class means."""
    given = LLAMA | {"model_type": kind} | ({"sliding_window": None} if kind == "mistral" else {})
    found = of(tmp_path, **given)
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert found.head_dim == (getattr(theirs, "head_dim", None) or 64 // 4)
    assert found.rms_norm_eps == theirs.rms_norm_eps
    assert found.rope_theta == theirs.rope_parameters["rope_theta"]
    assert found.tie_word_embeddings == theirs.tie_word_embeddings


OTHERS = {
    "biased": replace(READ, attention_bias=True, attention_output_bias=True, mlp_bias=True),
    "window": replace(READ, sliding_window=64),
    "linear": replace(READ, rope_type="linear", rope_factor=2.0),
    "yarn": replace(READ, rope_type="yarn", rope_factor=4.0, rope_attention_factor=1.5),
}


@pytest.mark.parametrize("name", [*PRESETS, *OTHERS])
def test_architectures_come_back(name: str, tmp_path: Path) -> None:
    """The file that is written here reads as the model, as does Transformers' own copy of it."""
    architecture = (PRESETS | OTHERS)[name]
    given = hf_config.to_config(architecture, positions=4096)
    assert of(tmp_path, **given) == architecture
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    assert hf_config.read(tmp_path / "theirs") == architecture


def test_what_else_a_configuration_says_stays() -> None:
    given = {"bos_token_id": 7, "max_position_embeddings": 4096, "rope_parameters": LLAMA3}
    found = hf_config.with_architecture(given, PRESETS["tiny"], 64)
    assert (found["bos_token_id"], found["max_position_embeddings"]) == (7, 4096)
    assert "rope_parameters" not in found


def test_models_that_transformers_does_not_have() -> None:
    odd = replace(PRESETS["tiny"], attention_output_bias=True)
    with pytest.raises(ValueError, match="no model of Transformers"):
        hf_config.to_config(odd, positions=64)
    odd = replace(PRESETS["tiny"], mlp_bias=True, sliding_window=64)
    with pytest.raises(
        ValueError, match=r"no model of Transformers has model\.sliding_window = 64"
    ):
        hf_config.to_config(odd, positions=64)
    odd = replace(PRESETS["tiny"], hidden_size=100)
    with pytest.raises(ValueError, match="does not divide"):
        hf_config.to_config(odd, positions=64)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "gemma2"}, "model_type is 'gemma2'; valid: llama, mistral, qwen2, qwen3"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"mlp_bias": 1}, "mlp_bias is 1; valid: true or false"),
        ({"model_type": "qwen2", "mlp_bias": True}, "mlp_bias is True; valid: false"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"sliding_window": 4096}, "sliding_window is 4096; valid: null"),
        ({"model_type": "mistral", "sliding_window": "all"}, "sliding_window is 'all'; valid: a w"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0; it must be at lea"),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 9},
            "sliding_window is 9",
        ),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; valid: at most 10000"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        (
            {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32.5}},
            "original_max_position_embeddings is 32.5",
        ),
        ({"rope_scaling": LLAMA3 | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"model_type": "qwen2", "num_key_value_heads": "2"}, "num_key_value_heads is '2'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 4}},
            "rope_scaling.rope_type is 'dynamic'",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
            "original_max_position_embeddings is None; valid: a whole number",
        ),
        ({"rope_scaling": YARN | {"truncate": False}}, "rope_scaling.truncate is False; valid: of"),
        ({"rope_scaling": {"type": "llama3"}}, "factor is None; valid: a number"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters.full_att",
        ),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'; valid: a whole number"),
        ({"hidden_size": 66}, "hidden_size is 66; valid: a multiple of its 4 heads"),
        ({"num_attention_heads": 0}, "hidden_size is 64"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; it must divide"),
    ],
)
def test_what_this_decoder_does_not_have(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        of(tmp_path, **change)


@pytest.mark.parametrize("text", [b"", b"[1]", b"{", b"[" * 100_000, b"\xff", b"NaN", b"3"])
def test_damaged_files(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match="valid: "):
        hf_config.read(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        hf_config.read(tmp_path / "nowhere")
