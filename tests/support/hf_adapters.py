"""PEFT's LoRA on attention, MLP and head, of plain and of prepared models (for
tests/odysseus/hf/test_adapters.py)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.tensor import DTensor

from odysseus import hf
from odysseus.parallel.mesh import make_mesh
from tests.support.hf_models import CPU, Case, batch_of, build, norms_in_fp64

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
    """Return, by place and toggles, the errors of the loss and of each adapter's gradient, and 1
    for any other parameter that has a gradient."""
    norms_in_fp64()
    batch, found = batch_of(False), {}
    for place in PLACES:
        plain = adapted(place, "sdpa")
        logits = plain(**batch, use_cache=False).logits[:, :-1]
        expected = F.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())
        expected.backward()
        gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
        for toggle in toggles:
            case = Case("llama", toggles={"tiled_loss_compute": "auto"} | toggle)
            run = case.run(torch.distributed.get_world_size())
            mesh = make_mesh(CPU, run)
            hf.register(mesh)
            model = adapted(place, "ulysses")
            hf.prepare(model, mesh, run)
            shard = hf.shard_batch(batch, mesh)
            loss = hf.loss(model(**shard), shard["shift_labels"], hf.count_items([shard], mesh))
            loss.backward()
            whole = loss.detach().clone()
            torch.distributed.all_reduce(whole)
            errors = {"loss": abs(whole.item() - expected.item())}
            for name, parameter in model.named_parameters():
                if name not in gradients:
                    errors[name] = float(parameter.grad is not None)
                    continue
                assert isinstance(parameter.grad, DTensor), name
                error = (parameter.grad.full_tensor() - gradients[name]).abs().max()
                errors[name] = (error / gradients[name].abs().max()).item()
            found[f"{place} {toggle}"] = errors
    return found
