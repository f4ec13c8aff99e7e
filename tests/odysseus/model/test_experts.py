"""Mixtures of experts against Transformers' Mixtral and Qwen3-MoE: loss and every gradient, through
checkpoints that either wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig
from transformers.models.mixtral import modeling_mixtral
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm, MixtralTopKRouter
from transformers.models.qwen3_moe import modeling_qwen3_moe
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm, Qwen3MoeTopKRouter

from odysseus.config import hf_config
from odysseus.config.architecture import Architecture, preset
from odysseus.io.checkpoint import Checkpoint
from odysseus.model.decoder import CausalLM, reference_model
from odysseus.model.experts import MixtureOfExperts
from odysseus.model.grouped import Rows, grouped_linear
from odysseus.model.router_losses import RouterLosses
from odysseus.parallel import sharding
from tests.support.hf_reference import full_precision_norm

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.1,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS: dict[str, Any] = {
    "mixtral": MixtralConfig(**SIZES, intermediate_size=16, num_local_experts=4),
    "mixtral, balanced": MixtralConfig(
        **SIZES, intermediate_size=16, num_local_experts=4, output_router_logits=True
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, moe_intermediate_size=16, num_experts=4, norm_topk_prob=True, attention_bias=True
    ),
    "qwen3_moe, weights as they are": Qwen3MoeConfig(
        **SIZES, moe_intermediate_size=16, num_experts=4, output_router_logits=True
    ),
}


def saved(config: Any, folder: Path) -> nn.Module:
    """Save a model whose every parameter is drawn, and return it."""
    options = {"attn_implementation": "sdpa", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_config(config, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm" in name else 0.0
            parameter.copy_(around + 0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model


def loaded(folder: Path) -> CausalLM:
    """The reference with a checkpoint's weights."""
    architecture = hf_config.read(folder)
    checkpoint = Checkpoint(folder)
    checkpoint.check(architecture)
    model = reference_model(architecture)
    checkpoint.load(sharding.local_pieces(model, architecture))
    return model


def full_precision_router(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Theirs, which rounds scores to fp32."""
    logits = F.linear(x.reshape(-1, self.hidden_dim), self.weight)
    values, chosen = logits.softmax(-1).topk(self.top_k)
    if getattr(self, "norm_topk_prob", True):
        values = values / values.sum(-1, keepdim=True)
    return logits, values, chosen


def in_full_precision(function: Any) -> Any:
    """Their load-balancing loss, which rounds shares and probabilities to fp32."""

    def computed(*args: Any) -> Tensor:
        wide = mock.patch.object(Tensor, "float", Tensor.double)
        with wide, mock.patch.object(torch, "float32", torch.float64):
            return function(*args)

    return computed


def differences(theirs: nn.Module, ours: CausalLM) -> dict[str, float]:
    """The largest difference of loss and of each gradient on the same tokens, by their names."""
    tokens = torch.randint(0, 64, (2, 25), generator=torch.Generator().manual_seed(1))
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    output = theirs(inputs, attention_mask=torch.ones_like(inputs))
    expected = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    a = ours.model.architecture
    losses = RouterLosses(a, torch.device("cpu"), lambda sums: None, micro_steps=1)
    if a.router_aux_loss_coef:
        expected = expected + a.router_aux_loss_coef * output.aux_loss
        for module in ours.modules():
            if isinstance(module, MixtureOfExperts):
                module.losses = losses
    expected.backward()
    with losses.over_forward():
        loss = ours(inputs, torch.arange(24)[None], labels)
    loss.backward()
    if a.router_aux_loss_coef:
        loss = loss + losses.value()
    found = {"loss": float((loss - expected).detach().abs())}
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        for piece, view in sharding.cut_rows(parameter.grad, sharding.pieces(name, a)):
            found[piece.name] = float((view - of_expert(piece.name, gradients)).abs().max())
    return found


def of_expert(name: str, gradients: dict[str, Any]) -> Tensor:
    """Their gradient of a tensor; those of all experts are one parameter."""
    if ".experts." not in name:
        return gradients[name]
    block, _, rest = name.partition(".experts.")
    expert, part, _ = rest.split(".")
    if part == "down_proj":
        return gradients[f"{block}.experts.down_proj"][int(expert)]
    both = gradients[f"{block}.experts.gate_up_proj"][int(expert)]
    return both.chunk(2)[part == "up_proj"]


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers_in_fp64(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for norm in (MixtralRMSNorm, Qwen3MoeRMSNorm):
        monkeypatch.setattr(norm, "forward", full_precision_norm)
    for router in (MixtralTopKRouter, Qwen3MoeTopKRouter):
        monkeypatch.setattr(router, "forward", full_precision_router)
    for module in (modeling_mixtral, modeling_qwen3_moe):
        loss = in_full_precision(module.load_balancing_loss_func)
        monkeypatch.setattr(module, "load_balancing_loss_func", loss)
    theirs = saved(CONFIGS[name], tmp_path)
    found = differences(theirs.double(), loaded(tmp_path).double())
    assert {key: error for key, error in found.items() if not error < 1e-10} == {}


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_untouched_transformers_in_fp32(name: str, tmp_path: Path) -> None:
    found = differences(saved(CONFIGS[name], tmp_path), loaded(tmp_path))
    assert {key: error for key, error in found.items() if not error < 2e-4} == {}


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b"])
def test_names_and_shapes_are_transformers(name: str, tmp_path: Path) -> None:
    """The preset with small sizes names what is in a checkpoint of Transformers."""
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_experts": 8}
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    architecture = replace(preset(name), **small, **sizes, head_dim=8)
    config = hf_config.to_config(architecture, positions=64)
    saved(AutoConfig.for_model(config["model_type"]).from_dict(config), tmp_path)
    assert hf_config.read(tmp_path) == architecture
    Checkpoint(tmp_path).check(architecture)


# Sums over the published checkpoints' tensors.
PUBLISHED = {"mixtral-8x7b": 46_702_792_704, "qwen3-30b-a3b": 30_532_122_624}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_presets_have_the_published_number_of_parameters(name: str, count: int) -> None:
    shapes = sharding.huggingface_shapes(preset(name)).values()
    assert sum(torch.Size(shape).numel() for shape in shapes) == count


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 12])
def test_each_row_meets_its_expert(dtype: torch.dtype, width: int) -> None:
    """Also where an expert has no row, and where the grouped matmul does not take a width."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(shape, generator=generator) for shape in ((5, 16), (4, width, 16)))
    x_TD, weight_EWD = (x.to(dtype).requires_grad_() for x in drawn)
    experts_TK = torch.tensor([[3, 0], [0, 3], [2, 3], [3, 2], [0, 2]])
    rows = Rows.by_expert(experts_TK, 4)
    assert rows.ends_E.tolist() == [3, 3, 6, 10]
    y_TW = rows.collect(grouped_linear(rows.spread(x_TD), weight_EWD, rows))
    expected = torch.stack(
        [
            sum(x @ weight_EWD[e].T for e in chosen)
            for x, chosen in zip(x_TD, experts_TK.tolist(), strict=True)
        ]
    )
    grad = torch.randn(y_TW.shape, generator=generator).to(dtype)
    found = torch.autograd.grad(y_TW, (x_TD, weight_EWD), grad)
    wanted = torch.autograd.grad(expected, (x_TD, weight_EWD), grad)
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    for one, other in zip((y_TW, *found), (expected, *wanted), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"decoder_sparse_step": 2}, "decoder_sparse_step is 2; valid: 1"),
        ({"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]; valid: \[\]"),
        ({"num_experts": "many"}, "num_experts is 'many'; valid: a whole number"),
        ({"norm_topk_prob": 1}, "norm_topk_prob is 1; valid: true or false"),
        ({"model_type": "mixtral", "router_jitter_noise": 0.1}, "router_jitter_noise is 0.1"),
    ],
)
def test_what_this_decoder_does_not_have(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    config = hf_config.to_config(preset("qwen3-30b-a3b"), positions=64)
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=told):
        hf_config.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scoring_func": "sigmoid"}, r"model\.scoring_func = sigmoid; valid: softmax"),
        ({"shared_expert_intermediate_size": 8}, r"model\.shared_expert_intermediate_size = 8;"),
        ({"router_z_loss_coef": 0.1}, r"model\.router_z_loss_coef = 0\.1; valid: 0"),
        ({"use_qk_norm": False, "norm_topk_prob": False}, r"norm_topk_prob = False; valid: True"),
    ],
)
def test_experts_that_transformers_does_not_have(change: dict[str, Any], told: str) -> None:
    architecture: Architecture = replace(preset("qwen3-30b-a3b"), **change)
    with pytest.raises(ValueError, match=f"no (mixtral|qwen3_moe) of Transformers has .*{told}"):
        hf_config.to_config(architecture, positions=64)


def test_missing_keys_have_mixtrals_defaults(tmp_path: Path) -> None:
    config = hf_config.to_config(preset("mixtral-8x7b"), positions=64)
    kept = {k: v for k, v in config.items() if k not in ("rms_norm_eps", "rope_theta")}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert hf_config.read(tmp_path) == preset("mixtral-8x7b")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rank_whose_experts_have_no_row(dtype: torch.dtype) -> None:
    rows = Rows.by_expert(torch.empty(0, 1, dtype=torch.int64), 4)
    x_TD = torch.empty(0, 16, dtype=dtype, requires_grad=True)
    weight_EWD = torch.randn(4, 8, 16).to(dtype).requires_grad_()
    y_TW = rows.collect(grouped_linear(rows.spread(x_TD), weight_EWD, rows))
    assert y_TW.shape == (0, 8)
    of_x, of_weight = torch.autograd.grad(y_TW.sum(), (x_TD, weight_EWD))
    assert of_x.shape == (0, 16)
    assert not of_weight.any()
