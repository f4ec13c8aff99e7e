"""ArcticTraining recipes with the fewest keys."""

from __future__ import annotations

from typing import Any

ZERO = "deepspeed.zero_optimization"

LEAST = {"model.name_or_path": "Qwen/Qwen3-32B", f"{ZERO}.stage": 3}


def built(given: dict[str, Any]) -> dict[str, Any]:
    """Make nested keys from dotted ones."""
    nested: dict[str, Any] = {}
    for key, value in given.items():
        *sections, name = key.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return nested
