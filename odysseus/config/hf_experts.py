"""Experts in a ``config.json`` and in a checkpoint's names: Mixtral and Qwen3-MoE.

Mixtral names the tensors of a block's MLP otherwise than Qwen3-MoE, whose names this project uses.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from odysseus.config.architecture import Architecture
from odysseus.config.hf_values import boolean, integer, number, refusal

KINDS = ("mixtral", "qwen3_moe")
"""Model types with experts."""
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
}
# Properties that each block of this decoder has, which are also the defaults of missing keys.
_ONLY = {"router_jitter_noise": 0.0, "decoder_sparse_step": 1, "mlp_only_layers": []}
_PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def read(file: Path, given: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the fields of an architecture that a ``config.json`` decides for its experts.

    A router has the load-balancing loss where Transformers computes it (``output_router_logits``).

    Raises:
        ValueError: blocks differ, or have what this decoder lacks.
    """
    for key, valid in _ONLY.items():
        if given.get(key) not in (None, valid):
            raise refusal(file, key, given[key], str(valid))
    of_width = "moe_intermediate_size" if kind == "qwen3_moe" else "intermediate_size"
    of_count = "num_local_experts"
    if kind == "qwen3_moe" and of_count not in given:  # only Transformers 5 writes this name
        of_count = "num_experts"
    known = {**_DEFAULTS[kind], **given}
    if not boolean(file, given, "output_router_logits"):
        coefficient = 0.0
    else:
        coefficient = number(file, given, "router_aux_loss_coef", 0.001)
    return {
        "intermediate_size": integer(file, known, of_width),
        "num_experts": integer(file, known, of_count),
        "num_experts_per_tok": integer(file, known, "num_experts_per_tok"),
        "norm_topk_prob": kind == "mixtral" or boolean(file, given, "norm_topk_prob"),
        "router_aux_loss_coef": coefficient,
    }


def write(a: Architecture, kind: str) -> dict[str, Any]:
    """Return the keys of a ``config.json`` that describe an architecture's experts."""
    keys: dict[str, Any] = {
        "num_experts_per_tok": a.num_experts_per_tok,
        "output_router_logits": a.router_aux_loss_coef > 0,
        "router_aux_loss_coef": a.router_aux_loss_coef or 0.001,
    }
    if kind == "mixtral":
        return keys | {"num_local_experts": a.num_experts}
    return keys | {
        "num_experts": a.num_experts,
        "moe_intermediate_size": a.intermediate_size,
        "norm_topk_prob": a.norm_topk_prob,
    }


def model_type(a: Architecture, dense: str) -> str:
    """Return the model type with an architecture's experts.

    Args:
        dense: The model type with its other switches.

    Raises:
        ValueError: none has.
    """
    kind = {"qwen3": "qwen3_moe", "llama": "mixtral"}.get(dense, "mixtral")
    needed: dict[str, Any] = {
        **{"scoring_func": "softmax", "shared_expert_intermediate_size": 0},
        **{"router_z_loss_coef": 0, "sliding_window": None},
        **({"norm_topk_prob": True, "attention_bias": False} if kind == "mixtral" else {}),
    }
    for name, valid in needed.items():
        if getattr(a, name) != valid:
            raise ValueError(
                f"no {kind} of Transformers has model.{name} = {getattr(a, name)}; valid: {valid}"
            )
    return kind


def usual_name(stored: str) -> str:
    """Return the name in this project of a checkpoint's tensor: Qwen3-MoE's for one of Mixtral."""
    named = stored.replace(".block_sparse_moe.", ".mlp.")
    return re.sub(r"(\.experts\.\d+)\.(w[123])\.", lambda m: f"{m[1]}.{_PARTS[m[2]]}.", named)


def stored_name(usual: str, kind: str) -> str:
    """Return the name of a tensor in a checkpoint of a model type; the inverse of
    :func:`usual_name`."""
    if kind != "mixtral" or ".mlp." not in usual:
        return usual
    for stored, own in _PARTS.items():
        usual = usual.replace(f".{own}.", f".{stored}.")
    return usual.replace(".mlp.", ".block_sparse_moe.")
