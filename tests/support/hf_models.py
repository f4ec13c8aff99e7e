"""Tiny models of Transformers, and the functions that ranks run for tests/odysseus/hf/test_hf.py.

The fork server imports this file, because importing Transformers takes seconds.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AttentionInterface, PreTrainedModel, masking_utils
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm, MixtralTopKRouter
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm, Qwen3MoeTopKRouter

from odysseus import hf
from odysseus.config.run import RunConfig
from odysseus.parallel.mesh import Mesh, make_mesh
from tests.support.hf_families import CONFIGS

CPU = torch.device("cpu")
BATCH, TOKENS = 2, 48


@dataclass(frozen=True)
class Case:
    """A model, the axis that its sequence is split over, its toggles, and whether samples are
    packed."""

    name: str
    attention: str = "ulysses"
    ring: int = 1
    packed: bool = False
    toggles: dict[str, Any] = field(default_factory=dict)

    def run(self, world_size: int) -> RunConfig:
        base = RunConfig(method="ulysses", world_size=world_size, dtype="fp64", seq_len=TOKENS)
        sizes = {"ring_parallel_size": self.ring, "micro_batch_size": BATCH}
        return replace(base, **sizes, **{"tiled_loss_compute": False} | self.toggles)


def norms_in_fp64() -> None:
    """Replace Transformers' norms and routers, which round fp64 to fp32."""

    def norm(self: Any, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)

    def gemma_norm(self: Any, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, 1 + self.weight, self.eps)

    for of in (
        GptOssRMSNorm,
        LlamaRMSNorm,
        MistralRMSNorm,
        MixtralRMSNorm,
        Phi3RMSNorm,
        Qwen2RMSNorm,
        Qwen3MoeRMSNorm,
        Qwen3RMSNorm,
    ):
        of.forward = norm
    GemmaRMSNorm.forward = gemma_norm
    MixtralTopKRouter.forward = Qwen3MoeTopKRouter.forward = route_in_fp64


def route_in_fp64(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Route as Mixtral and Qwen3-MoE do, which round probabilities to fp32."""
    logits = F.linear(x.reshape(-1, self.hidden_dim), self.weight)
    chosen = torch.topk(logits.softmax(-1), self.top_k, dim=-1)
    values = chosen.values
    if getattr(self, "norm_topk_prob", True):
        values = values / values.sum(-1, keepdim=True)
    return logits, values, chosen.indices


def build(name: str, attention: str) -> PreTrainedModel:
    """Build a model with the same weights at every call; no weight is zero or one."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[name])
    config._experts_implementation = "eager"  # grouped_mm knows no fp64
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, dtype=torch.float64
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.train()


def batch_of(packed: bool) -> dict[str, Tensor]:
    """Return two samples; packed, of 20, 1 and 27 tokens and of 7 and 41."""
    torch.manual_seed(1)
    batch = {"input_ids": torch.randint(0, 320, (BATCH, TOKENS))}
    if packed:
        rows = [(20, 1, 27), (7, 41)]
        positions = [torch.cat([torch.arange(n) for n in row]) for row in rows]
        batch["position_ids"] = torch.stack(positions)
    return batch


def transformers_results(name: str, packed: bool) -> tuple[float, dict[str, Tensor]]:
    """Return Transformers' own loss and gradients, in one process, with its 4D mask."""
    model, batch = build(name, "eager" if name == "gpt_oss" else "sdpa"), batch_of(packed)
    labels = batch["input_ids"].clone()
    if packed:
        labels[batch["position_ids"] == 0] = -100
    if name == "gpt_oss":
        _separate_documents(batch.get("position_ids"))
    output = model(**batch, use_cache=False)
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    loss = F.cross_entropy(output.logits.flatten(0, 1), shifted.flatten())
    if getattr(output, "router_logits", None) is not None:
        balance = load_balancing_loss(output.router_logits)
        assert abs(balance.item() - output.aux_loss.item()) < 1e-6
        loss = loss + model.config.router_aux_loss_coef * balance
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def _separate_documents(position_ids: Tensor | None) -> None:
    """Give Transformers' gpt-oss the masks of packed documents, as its other models have them; its
    own see across documents."""
    for mask in ("create_causal_mask", "create_sliding_window_causal_mask"):
        make = partial(getattr(masking_utils, mask), position_ids=position_ids)
        setattr(modeling_gpt_oss, mask, make)


def load_balancing_loss(router_logits: tuple[Tensor, ...]) -> Tensor:
    """Compute Transformers' loss of that name, which rounds to fp32, in fp64."""
    probabilities = torch.cat(router_logits).softmax(-1)
    experts = probabilities.shape[1]
    chosen = F.one_hot(probabilities.topk(2).indices, experts).sum(1).double()
    return experts * (chosen.mean(0) * probabilities.mean(0)).sum()


def split(case: Case, mesh: Mesh, run: RunConfig) -> tuple[PreTrainedModel, Any, float]:
    """Do the same on shards. Return the prepared model with its gradients, its undo function and
    the loss."""
    model = build(case.name, case.attention)
    undo = hf.prepare(model, mesh, run)
    shard = hf.shard_batch(batch_of(case.packed), mesh)
    count = hf.count_items([shard], mesh)
    loss = hf.loss(model(**shard), shard["shift_labels"], count)
    loss.backward()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    return model, undo, total.item()


def errors(cases: list[Case]) -> list[dict[str, float]]:
    """Return, per case on this rank, the error of the loss, and of each gradient relative to its
    largest element."""
    norms_in_fp64()
    torch.set_num_threads(1)
    world_size = torch.distributed.get_world_size()
    meshes: dict[int, Mesh] = {}
    expected: dict[tuple[str, bool], tuple[float, dict[str, Tensor]]] = {}
    found = []
    for case in cases:
        run = case.run(world_size)
        mesh = meshes.setdefault(case.ring, meshes.get(case.ring) or make_mesh(CPU, run))
        hf.register(mesh)
        of = case.name, case.packed
        loss, gradients = expected.setdefault(of, expected.get(of) or transformers_results(*of))
        model, _, local = split(case, mesh, run)
        worst = {"loss": abs(local - loss)}
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            assert isinstance(gradient, DTensor), name
            error = (gradient.full_tensor() - gradients[name]).abs().max()
            worst[name] = (error / gradients[name].abs().max()).item()
        assert worst.keys() == {"loss", *gradients}
        found.append(worst)
    return found


def undone(name: str, toggles: dict[str, Any]) -> dict[str, bool]:
    """Whether a model is as before: its types, attributes and logits; and whether it keeps its
    gradients."""
    case = Case(name, toggles=toggles)
    mesh = make_mesh(CPU, case.run(2))
    hf.register(mesh)
    plain = build(name, "ulysses")
    inputs = {"input_ids": batch_of(False)["input_ids"]}
    plain.set_attn_implementation("sdpa")
    _, expected = transformers_results(name, False)
    model, undo, _ = split(case, mesh, case.run(2))
    undo()
    local = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    hf.prepare(model, mesh, case.run(2))()
    model.set_attn_implementation("sdpa")
    # A model that returns router logits gets Transformers' own hooks in its first forward.
    logits, expected_logits = (of(**inputs).logits for of in (model, plain))
    return {
        "type": [type(m) for m in model.modules()] == [type(m) for m in plain.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()]
        == [sorted(vars(m)) for m in plain.modules()],
        "hooks": [hooks_of(m) for m in model.modules()] == [hooks_of(m) for m in plain.modules()],
        "logits": torch.equal(logits, expected_logits),
        "gradients": local.keys() == expected.keys()
        and all(torch.allclose(local[n], g, rtol=1e-4, atol=1e-8) for n, g in expected.items()),
    }


def hooks_of(module: nn.Module) -> dict[str, int]:
    """Count the hooks of each kind."""
    return {name: len(of) for name, of in vars(module).items() if name.endswith("_hooks")}


def registered() -> tuple[list[str], list[str]]:
    """Transformers' names of attention before and after."""
    for name in hf.attention.NAMES:
        AttentionInterface._global_mapping.pop(name, None)
    before = dict(AttentionInterface._global_mapping)
    hf.register(make_mesh(CPU, Case("llama").run(1)))
    after = dict(AttentionInterface._global_mapping)
    assert {name: after[name] for name in before} == before
    return [*before], [*before, *sorted(after.keys() - before.keys())]


def in_other_orders() -> tuple[bool, float]:
    """Return whether all weights are shards after a forward without gradients, and the largest
    gradient error. That error compares two offloaded forwards followed by one backward with
    twice the gradients of one."""
    case = Case("qwen3", toggles=ALL)
    mesh = make_mesh(CPU, case.run(2))
    hf.register(mesh)
    model, _, _ = split(case, mesh, case.run(2))
    once = [p.grad.full_tensor() for p in model.parameters() if isinstance(p.grad, DTensor)]
    model.zero_grad()
    shard = hf.shard_batch(batch_of(False), mesh)
    with torch.no_grad():
        model(**shard)
    sharded = all(isinstance(p, DTensor) for p in model.parameters())
    count = hf.count_items([shard], mesh)
    losses = [hf.loss(model(**shard), shard["shift_labels"], count) for _ in range(2)]
    torch.stack(losses).sum().backward()
    twice = [p.grad.full_tensor() for p in model.parameters() if isinstance(p.grad, DTensor)]
    errors = [(b / 2 - a).abs().max().item() for a, b in zip(once, twice, strict=True)]
    return sharded, max(errors)


ALL: dict[str, Any] = {
    "activation_checkpoint_cpu_offload": True,
    "tiled_mlp_compute": True,
    "tiled_loss_compute": True,
}
OF_EXPERTS: dict[str, Any] = {name: True for name in ALL if name != "tiled_mlp_compute"}
"""All tricks of a mixture of experts."""


def padded(name: str) -> float:
    """Return the error of the loss of samples of 40 and 44 tokens, padded to 48."""
    norms_in_fp64()
    run = Case(name).run(2)
    mesh = make_mesh(CPU, run)
    hf.register(mesh)
    batch, lengths = batch_of(False), (40, 44)
    ids, plain = batch["input_ids"], build(name, "sdpa")
    labels, mask = ids.clone(), torch.ones_like(ids)
    for row, length in enumerate(lengths):
        labels[row, length:], mask[row, length:] = -100, 0
    longest = max(lengths)
    output = plain(ids[:, :longest])
    shifted = labels[:, 1:longest].flatten()
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), shifted)
    if getattr(output, "router_logits", None) is not None:
        kept = mask[:, :longest].flatten() == 1
        balance = load_balancing_loss(tuple(logits[kept] for logits in output.router_logits))
        expected = expected + plain.config.router_aux_loss_coef * balance
    given = {"input_ids": ids, "attention_mask": mask}
    (shard, other) = hf.ShardedLoader([given | {"labels": labels}, given], mesh)
    flags = hf.shard_batch(given | {"attention_mask": mask.bool()}, mesh)
    for same in (other, flags):  # labels by default, and a mask of another type
        assert torch.equal(shard["shift_labels"], same["shift_labels"])
    model = build(name, "ulysses")
    hf.prepare(model, mesh, run)
    loss = hf.loss(model(**shard), shard["shift_labels"], hf.count_items([shard], mesh)).detach()
    torch.distributed.all_reduce(loss)
    return abs(loss.item() - expected.item())
