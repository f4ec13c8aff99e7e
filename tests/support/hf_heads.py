"""Heads that are more than a weight, on plain and on prepared models (for
tests/odysseus/hf/test_heads.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from odysseus import hf
from odysseus.parallel.mesh import make_mesh
from tests.support.hf_models import CPU, Case, batch_of, build, norms_in_fp64


class WithAdapter(nn.Linear):
    """A linear layer with an adapter of rank 2 beside its frozen weight, as LoRA's."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__(width, vocabulary, bias=False)
        self.weight.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(2, width))
        self.up = nn.Parameter(torch.empty(vocabulary, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + F.linear(F.linear(x, self.down), self.up)


def biased(model: Any) -> None:
    model.lm_head = nn.Linear(32, 320)


def adapted(model: Any) -> None:
    model.lm_head = WithAdapter(32, 320)


def frozen(model: Any) -> None:
    model.lm_head.weight.requires_grad_(False)


def scaled(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda _, args, logits: logits * 0.5)


def replaced(model: Any) -> None:
    plain = model.lm_head.forward
    model.lm_head.forward = lambda x: plain(x).tanh()


HEADS: dict[str, Callable[[Any], None]] = {
    f.__name__: f for f in (biased, adapted, frozen, scaled, replaced)
}


def with_head(name: str, attention: str) -> PreTrainedModel:
    model = build("llama", attention).double()
    HEADS[name](model)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.double().get_output_embeddings().parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def preference_errors(toggles: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return, per toggles, the errors of log-probabilities and of each gradient of a preference
    loss (DPO) between two samples."""
    norms_in_fp64()
    plain, batch = build("llama", "sdpa"), batch_of(False)
    labels = batch["input_ids"][:, 1:]
    logits = plain(**batch, use_cache=False).logits[:, :-1]
    whole = logits.log_softmax(2).gather(2, labels[..., None]).squeeze(2)
    preference(whole.sum(1)).backward()
    gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    found = []
    for toggle in toggles:
        case = Case("llama", toggles={"tiled_loss_compute": "auto"} | toggle)
        run = case.run(torch.distributed.get_world_size())
        mesh = make_mesh(CPU, run)
        hf.register(mesh)
        model = build("llama", "ulysses")
        hf.prepare(model, mesh, run)
        shard = hf.shard_batch(batch, mesh)
        local = hf.token_log_probs(model, shard)
        sums = hf.sum_over_ranks(local.sum(1), mesh)
        preference(sums).backward()
        kept = shard["shift_labels"] != -100
        expected = F.pad(whole, (0, 1)).gather(1, shard["position_ids"])
        errors = {
            "tokens": ((local - expected) * kept).abs().max().item(),
            "ignored": local[~kept].abs().sum().item(),
            "sums": (sums - whole.sum(1)).abs().max().item(),
        }
        for name, parameter in model.named_parameters():
            assert isinstance(parameter.grad, DTensor), name
            error = (parameter.grad.full_tensor() - gradients[name]).abs().max()
            errors[name] = (error / gradients[name].abs().max()).item()
        found.append(errors)
    return found


def preference(sums_2: Tensor) -> Tensor:
    return -F.logsigmoid(0.1 * (sums_2[0] - sums_2[1]))


def head_errors(toggles: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the errors of each head, by head and toggles."""
    found = {}
    for name in HEADS:
        errors = errors_beside(with_head(name, "sdpa"), partial(with_head, name), toggles)
        found |= {f"{name} {toggle}": of for toggle, of in zip(toggles, errors, strict=True)}
    return found


def errors_beside(
    plain: Any, made: Callable[[str], Any], toggles: list[dict[str, Any]]
) -> list[dict[str, float]]:
    """Compare a model that is prepared with each toggle with a plain one.

    Args:
        plain: Transformers' own model.
        made: Makes the same model, given the name of its attention.

    Returns:
        Per toggle, the error of the loss and of each gradient relative to its largest element, and
        1 for a gradient that the plain model has not.
    """
    norms_in_fp64()
    batch, found = batch_of(False), []
    logits = plain(**batch, use_cache=False).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())
    expected.backward()
    gradients = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    for toggle in toggles:
        case = Case("llama", toggles={"tiled_loss_compute": "auto"} | toggle)
        run = case.run(torch.distributed.get_world_size())
        mesh = make_mesh(CPU, run)
        hf.register(mesh)
        model = made("ulysses")
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
        found.append(errors)
    return found
