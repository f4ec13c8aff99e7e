"""Which of Transformers' models are known to be right on a split sequence: those that the tests
hold against one process. Others may mix tokens where nothing of this project sees it."""

from __future__ import annotations

from typing import Any

from torch import nn

TRICKS = ("gemma", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""Whose MLP is a function of tokens behind ``layer.mlp``, and whose head's output is the logits."""
SPLITS = (*TRICKS, "granite", "olmo2", "phi", "starcoder2")
"""All whose tokens meet in the registered attention alone."""
# Their frequencies depend on the largest position, of which every shard would see its own.
_BY_LENGTH = ("dynamic", "longrope")


def check(config: Any, of: str) -> None:
    """Raise ValueError unless a model's configuration is known to be right on a split sequence."""
    if config.model_type not in SPLITS:
        raise ValueError(
            f"{of} is of model_type {config.model_type}, not known to be right on a split "
            f"sequence; valid: {', '.join(SPLITS)}"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind in _BY_LENGTH:
        raise ValueError(
            f"{of} has rope_type {kind}, whose frequencies depend on the whole sample's positions; "
            "valid: default, linear, llama3, yarn"
        )


def check_dropout(blocks: list[nn.Module], of: str) -> None:
    """Raise ValueError if blocks that are computed twice would draw twice."""
    rates = [m.p for b in blocks for m in b.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if rates:
        raise ValueError(
            f"{of} has dropout of {max(rates)} in blocks that are computed again in backward, with "
            "other draws; valid: 0, or neither checkpointing nor tiled_mlp_compute"
        )
