"""PEFT's LoRA on attention, MLP and head, of plain and of prepared models (for
tests/odysseus/hf/test_adapters.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.support.hf_heads import errors_beside
from tests.support.hf_models import build

PLACES = {
    "attention": ["q_proj", "v_proj"],
    "mlp": ["gate_proj", "down_proj"],
    "head": ["lm_head"],
    "all": ["q_proj", "o_proj", "up_proj", "lm_head"],
}


def adapted(place: str, attention: str) -> Any:
    """Build a model with adapters that no weight of theirs leaves without effect."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=PLACES[place], bias="none")
    model = get_peft_model(build("llama", attention), config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.double().train()


def adapter_errors(toggles: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the errors of each place, by place and toggles."""
    found = {}
    for place in PLACES:
        errors = errors_beside(adapted(place, "sdpa"), partial(adapted, place), toggles)
        found |= {f"{place} {toggle}": of for toggle, of in zip(toggles, errors, strict=True)}
    return found
