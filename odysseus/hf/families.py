"""Model families of Transformers that are known to be right on a split sequence.

Tests compare each of them with one process. Other families may mix tokens outside the attention
function, where this project cannot see it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

EXPERTS = ("gpt_oss", "mixtral", "qwen3_moe")
"""Mixture-of-experts families: each token goes to its own experts."""
TRICKS = ("gemma", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""Families whose MLP ``layer.mlp`` is a function of tokens."""
TILED_LOSS = (*TRICKS, *EXPERTS)
"""Families whose head returns the logits."""
SPLITS = (*TILED_LOSS, "granite", "olmo2", "phi", "starcoder2")
"""All families whose tokens meet only in the registered attention."""
SEES_ACROSS_DOCUMENTS = ("gpt_oss",)
"""Families whose own masks do not tell packed documents apart."""
BY_LENGTH = frozenset(("dynamic", "longrope"))
"""Kinds of rotary embedding whose frequencies depend on the batch's longest position."""
_ROPES = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")


def rope_type(config: Any) -> str:
    """Return the kind of rotary embedding of a model's configuration."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("rope_type", "default")


def check(config: Any, name: str) -> None:
    """Raise ValueError unless a model's family and rotary embedding are known to be right when
    split.

    Args:
        config: The model's configuration.
        name: The class of the model, for the message.
    """
    check_family(config.model_type, name)
    if rope_type(config) not in _ROPES:
        raise ValueError(
            f"{name} has rope_type {rope_type(config)}, not known to be right on a split "
            f"sequence; valid: {', '.join(_ROPES)}"
        )
    if getattr(config, "router_jitter_noise", None):
        raise ValueError(
            f"{name} has router_jitter_noise = {config.router_jitter_noise}, which draws for the "
            "tokens of each rank alone; valid: 0"
        )


def check_family(model_type: str, name: str) -> None:
    """Raise ValueError unless a family is known to be right when split."""
    if model_type not in SPLITS:
        raise ValueError(
            f"{name} is of model_type {model_type}, not known to be right on a split "
            f"sequence; valid: {', '.join(SPLITS)}"
        )


def check_dropout(blocks: list[nn.Module], name: str) -> None:
    """Raise ValueError if blocks that are computed twice would draw dropout twice."""
    rates = [m.p for b in blocks for m in b.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if rates:
        raise ValueError(
            f"{name} has dropout of {max(rates)} in blocks that are computed again in backward, "
            "with other draws; valid: 0, or neither checkpointing nor tiled_mlp_compute"
        )
