"""The single-process reference equals Hugging Face transformers' models with the same weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from odysseus.config import hf_config
from odysseus.config.architecture import PRESETS, Architecture
from odysseus.model.decoder import CausalLM, reference_model
from odysseus.model.loss import IGNORED_LABEL
from odysseus.parallel import sharding
from tests.support.hf_reference import full_precision_norm

BASE = Architecture(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "tie_word_embeddings",
]


@dataclass(frozen=True)
class Case:
    """An architecture, and what Hugging Face calls it."""

    architecture: Architecture
    config: type = LlamaConfig
    model: type = LlamaForCausalLM


CASES = {
    "llama": Case(BASE),
    "llama_multi_head": Case(replace(BASE, num_key_value_heads=4, rms_norm_eps=1e-2)),
    # 128 tokens were seen: of the wavelengths 6, 63, 628 and 6283 one is kept, one blended and
    # two are stretched.
    "llama3_rope": Case(replace(BASE, rope_factor=8.0, rope_original_max_position_embeddings=128)),
    "linear_rope": Case(replace(BASE, rope_type="linear", rope_factor=4.0)),
    "yarn_rope": Case(
        replace(BASE, rope_type="yarn", rope_factor=8.0, rope_original_max_position_embeddings=128)
    ),
    "yarn_rope_factor": Case(
        replace(
            BASE,
            rope_type="yarn",
            rope_factor=2.0,
            rope_beta_fast=4.0,
            rope_beta_slow=0.5,
            rope_attention_factor=1.25,
        )
    ),
    "llama_bias": Case(replace(BASE, attention_bias=True, attention_output_bias=True)),
    "llama_mlp_bias": Case(replace(BASE, mlp_bias=True)),
    "llama_tied": Case(replace(BASE, tie_word_embeddings=True)),
    "qwen2": Case(replace(BASE, attention_bias=True), Qwen2Config, Qwen2ForCausalLM),
    "qwen2_tied": Case(
        replace(BASE, attention_bias=True, tie_word_embeddings=True, rope_theta=1e6),
        Qwen2Config,
        Qwen2ForCausalLM,
    ),
    "qwen3": Case(
        replace(BASE, use_qk_norm=True, head_dim=16, rope_theta=1e6), Qwen3Config, Qwen3ForCausalLM
    ),
    "qwen3_bias": Case(
        replace(BASE, use_qk_norm=True, attention_bias=True, attention_output_bias=True),
        Qwen3Config,
        Qwen3ForCausalLM,
    ),
}


def huggingface_model(case: Case) -> PreTrainedModel:
    """The model with every parameter drawn, norms and biases too, so that none can be missed."""
    a = case.architecture
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": a.rope_theta}
    if a.rope_factor != 1.0:
        rope = hf_config.to_config(a, positions=2048)["rope_scaling"]
        rope["rope_theta"] = a.rope_theta
    options: dict[str, Any] = {name: getattr(a, name) for name in SIZES}
    if case.config is not Qwen2Config:  # Qwen2 always has biases on q, k and v alone.
        options["attention_bias"] = a.attention_bias
    if case.config is LlamaConfig:
        options["mlp_bias"] = a.mlp_bias
    config = case.config(**options, rope_parameters=rope, attn_implementation="sdpa")
    model = case.model(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm" in name else 0.0
            parameter.copy_(around + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def our_model(case: Case, whole: dict[str, Tensor], dtype: torch.dtype) -> CausalLM:
    """The reference with the Hugging Face weights, through the map that checkpoints use."""
    model = reference_model(case.architecture).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
        for piece, view in sharding.local_pieces(model, case.architecture):
            view.copy_(piece.of(whole[piece.name]))
    return model


def differences(case: Case, dtype: torch.dtype) -> dict[str, float]:
    """Loss and whole gradients of both models on the same tokens: largest difference by name.

    Gradients of the sum of 42 token losses are of order 1 to 20.
    """
    theirs = huggingface_model(case).to(dtype)
    ours = our_model(case, theirs.state_dict(), dtype)
    tokens = torch.randint(0, 64, (2, 25), generator=torch.Generator().manual_seed(1))
    inputs, labels = tokens[:, :-1], tokens[:, 1:].clone()
    labels[:, :3] = IGNORED_LABEL
    positions = torch.arange(100, 172, 3)[None]  # Not 0, 1, 2: they must come from the argument.

    # Without a mask of ones they would take the gaps for borders between packed documents.
    ones = torch.ones_like(inputs)
    logits = theirs(inputs, attention_mask=ones, position_ids=positions.expand(2, -1)).logits
    # Their own loss is computed in fp32 whatever the dtype.
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    expected.backward()
    loss = ours(inputs, positions, labels)
    loss.backward()

    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    worst = dict.fromkeys(gradients, math.nan)
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        of = sharding.pieces(name, case.architecture)
        for piece, view in sharding.cut_rows(parameter.grad, of):
            theirs_here = gradients[piece.name]
            assert theirs_here is not None
            worst[piece.name] = (view - piece.of(theirs_here)).abs().max().item()
    return {"loss": (loss - expected).abs().item()} | worst


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers_in_fp64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Theirs rounds to fp32 inside every norm, which would hide errors below 1e-6. Rotary
    # frequencies and angles are fp32 in both.
    for norm in (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(norm, "forward", full_precision_norm)
    found = differences(CASES[name], torch.float64)
    # fp64 rounds at 1e-16, gradients are sums of some thousand products.
    assert {key: error for key, error in found.items() if not error < 1e-10} == {}


@pytest.mark.parametrize("name", CASES)
def test_equals_untouched_transformers_in_fp32(name: str) -> None:
    found = differences(CASES[name], torch.float32)
    # One fp32 rounding of a loss of about 200 is 1.5e-5; some ten of them.
    assert {key: error for key, error in found.items() if not error < 2e-4} == {}


@pytest.mark.parametrize("name", CASES)
def test_names_and_shapes_are_transformers(name: str) -> None:
    case = CASES[name]
    theirs = {key: tuple(x.shape) for key, x in huggingface_model(case).state_dict().items()}
    if case.architecture.tie_word_embeddings:
        del theirs["lm_head.weight"]  # The embedding under a second name.
    assert sharding.huggingface_shapes(case.architecture) == theirs


# Sums over the published checkpoints' tensors: Llama 2 7B, Llama 3.1 8B and 70B, Qwen3 32B.
PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "qwen3-32b": 32_762_123_264,
}


def parameters(architecture: Architecture) -> int:
    return sum(math.prod(shape) for shape in sharding.huggingface_shapes(architecture).values())


@pytest.mark.parametrize(("preset", "count"), PUBLISHED.items())
def test_presets_have_the_published_number_of_parameters(preset: str, count: int) -> None:
    assert parameters(PRESETS[preset]) == count


def test_small_has_about_100_million_parameters() -> None:
    assert 90_000_000 < parameters(PRESETS["small"]) < 110_000_000


@pytest.mark.parametrize("preset", PRESETS)
def test_the_module_holds_exactly_these_parameters(preset: str) -> None:
    with torch.device("meta"):
        model = reference_model(PRESETS[preset])
    assert sum(p.numel() for p in model.parameters()) == parameters(PRESETS[preset])
