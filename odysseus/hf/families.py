"""Model families of Transformers that are known to be right on a split sequence.

Tests compare each of them with one process. Other families may mix tokens outside the attention
function, where this project cannot see it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

TRICKS = ("gemma", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""Families whose MLP ``layer.mlp`` is a function of tokens, and whose head returns the logits."""
SPLITS = (*TRICKS, "granite", "olmo2", "phi", "starcoder2")
"""All families whose tokens meet only in the registered attention."""
# Their frequencies depend on the largest position, which differs between shards.
_BY_LENGTH = ("dynamic", "longrope")


def rope_type(config: Any) -> str:
    """Return the kind of rotary embedding of a model's configuration."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("rope_type", "default")


def check(model_type: str, rope_type: str, name: str) -> None:
    """Raise ValueError unless a family and rotary embedding are known to be right when split.

    Args:
        name: The class of the model or layer, for the message.
    """
    if model_type not in SPLITS:
        raise ValueError(
            f"{name} is of model_type {model_type}, not known to be right on a split "
            f"sequence; valid: {', '.join(SPLITS)}"
        )
    if rope_type in _BY_LENGTH:
        raise ValueError(
            f"{name} has rope_type {rope_type}, whose frequencies depend on the whole sample's "
            "positions; valid: default, linear, llama3, yarn"
        )


def check_dropout(blocks: list[nn.Module], name: str) -> None:
    """Raise ValueError if blocks that are computed twice would draw dropout twice."""
    rates = [m.p for b in blocks for m in b.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if rates:
        raise ValueError(
            f"{name} has dropout of {max(rates)} in blocks that are computed again in backward, "
            "with other draws; valid: 0, or neither checkpointing nor tiled_mlp_compute"
        )
