"""Sizes of a model, for a row and its summary."""

from __future__ import annotations

from math import prod
from typing import Any

from odysseus.config.run import RunConfig
from odysseus.parallel.sharding import huggingface_shapes

_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "vocab_size"),
)
COLUMNS = ("parameters", *_SIZES)
"""Columns of a row."""


def columns(run: RunConfig) -> dict[str, Any]:
    """Return the sizes of a run's model: elements of all weights, and the widths of its layers.

    Raises:
        ValueError: the sizes do not fit together.
    """
    shapes = huggingface_shapes(run.architecture).values()
    sizes = {name: getattr(run.architecture, name) for name in _SIZES}
    return {"parameters": sum(map(prod, shapes))} | sizes


def in_words(row: dict[str, Any]) -> str:
    """Return a row's sizes in one phrase."""
    return (
        f"{row['parameters'] / 1e6:,.1f} M parameters in {row['num_hidden_layers']} layers, "
        f"{row['hidden_size']} wide, MLP {row['intermediate_size']}, "
        f"{row['num_attention_heads']} heads ({row['num_key_value_heads']} kv)"
    )
