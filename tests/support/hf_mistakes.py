"""Mistakes with Transformers' models, and their error messages (for
tests/odysseus/hf/test_hf.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    LlamaConfig,
    MixtralConfig,
    PhiConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from odysseus import hf
from odysseus.config.run import OptimizerOptions, RunConfig
from odysseus.parallel.mesh import Mesh, make_mesh
from tests.support.hf_families import CONFIGS, SIZES
from tests.support.hf_models import CPU, Case, batch_of, build


def refusals() -> dict[str, str]:
    """Return the error message of each mistake."""
    mesh = make_mesh(CPU, Case("llama").run(2))
    ringed = make_mesh(CPU, Case("llama", ring=2).run(2))
    batch = batch_of(False)
    shard = hf.shard_batch(batch, mesh)
    ones = torch.ones_like(batch["input_ids"])
    holes, padding = ones.clone(), ones.clone()
    holes[0, 3], padding[:, -4:] = 0, 0
    numbered, jumping = ones.clone(), torch.arange(48)[None].clone()
    numbered[:, 20:], jumping[:, 30:] = 2, torch.arange(40, 58)
    hf.register(mesh)

    def hooked() -> PreTrainedModel:
        model = build("llama", "ulysses")
        model.get_output_embeddings().register_forward_hook(lambda *_: None)
        return model

    def half_rounded() -> PreTrainedModel:
        model = build("llama", "ulysses")
        model.get_input_embeddings().bfloat16()
        return model

    def checkpointed_again() -> PreTrainedModel:
        model = prepared(mesh, replace(run, activation_checkpoint_cpu_offload=True))
        model.gradient_checkpointing_enable()
        return model

    def model_of(config: Any) -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(config, attn_implementation="ulysses").train()

    llama = LlamaConfig(**SIZES)
    rank = torch.distributed.get_rank()
    other = hf.ShardedLoader([{"input_ids": batch["input_ids"] + rank}], mesh)
    run = Case("llama").run(2)
    mistakes: dict[str, Any] = {
        "sliding window": lambda: model_of(llama)(**shard, sliding_window=0),
        "softcap": lambda: model_of(llama)(**shard, softcap=50.0),
        "sinks": lambda: model_of(llama)(**shard, s_aux=torch.ones(3)),
        "family": lambda: model_of(Gemma2Config(**SIZES, head_dim=16))(**shard),
        "longest position": lambda: model_of(CONFIGS["dynamic"])(**shard),
        "router": lambda: hf.prepare(
            model_of(MixtralConfig(**SIZES, num_local_experts=4, router_jitter_noise=0.1)),
            *(mesh, run),
        ),
        "router logits": lambda: hf.loss(
            model_of(CONFIGS["mixtral"])(**shard), shard["shift_labels"], 1
        ),
        "tiles of experts": lambda: hf.prepare(
            model_of(CONFIGS["mixtral"]), mesh, replace(run, tiled_mlp_compute=True)
        ),
        "plain attention": lambda: hf.prepare(build("llama", "sdpa"), mesh, run),
        "dropout again": lambda: hf.prepare(
            model_of(PhiConfig(**SIZES, resid_pdrop=0.5)),
            *(mesh, replace(run, activation_checkpointing=True)),
        ),
        "eval": lambda: hf.prepare(
            model_of(llama).eval(), mesh, replace(run, activation_checkpointing=True)
        ),
        "twice": lambda: hf.prepare(prepared(mesh, run), mesh, run),
        "no head": lambda: hf.prepare(model_of(llama).model, mesh, run),
        "two dtypes": lambda: hf.prepare(half_rounded(), mesh, run),
        "checkpointing by the caller": lambda: checkpointed_again()(**shard),
        "value": lambda: hf.prepare(model_of(llama), mesh, replace(run, dtype="bfloat16")),
        "optimizer": lambda: hf.prepare(
            model_of(llama), mesh, replace(run, optimizer=OptimizerOptions(offload="cpu"))
        ),
        "other mesh": lambda: model_of(llama)(**hf.shard_batch(batch, ringed)),
        "no labels at all": lambda: hf.count_items(
            [{"shift_labels": torch.full_like(ones, -100)}], mesh
        ),
        "nothing": lambda: hf.shard_batch({}, mesh),
        "shapes": lambda: hf.shard_batch(batch | {"labels": ones[:, 1:]}, mesh),
        "dropout": lambda: model_of(LlamaConfig(**SIZES, attention_dropout=0.1))(**shard),
        "plain batch": lambda: model_of(llama)(batch["input_ids"]),
        "heads": lambda: model_of(
            LlamaConfig(
                **SIZES | {"num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 16}
            )
        )(**shard),
        "padding": lambda: hf.shard_batch(batch | {"attention_mask": holes}, mesh),
        "padding with labels": lambda: hf.shard_batch(
            batch | {"attention_mask": padding, "labels": ones}, mesh
        ),
        "documents in a mask": lambda: hf.shard_batch(batch | {"attention_mask": numbered}, mesh),
        "documents in a mask, backwards": lambda: hf.shard_batch(
            batch | {"attention_mask": 3 - numbered}, mesh
        ),
        "positions that jump": lambda: hf.shard_batch(batch | {"position_ids": jumping}, mesh),
        "words": lambda: list(hf.ShardedLoader([{"input_ids": [["the", "cat"]]}], mesh)),
        "one word": lambda: list(hf.ShardedLoader([batch | {"text": "the cat"}], mesh)),
        "lists of any length": lambda: hf.shard_batch({"input_ids": [[1, 2], [3]]}, mesh),
        "half numbers": lambda: list(
            hf.ShardedLoader([{"input_ids": batch["input_ids"].bfloat16()}], mesh)
        ),
        "a number": lambda: list(hf.ShardedLoader([batch | {"labels": 3}], mesh)),
        "fewer batches": lambda: list(hf.ShardedLoader([batch] * (2 + rank), mesh)),
        "hooks": lambda: hf.prepare(hooked(), mesh, replace(run, tiled_loss_compute=True)),
        "length": lambda: hf.shard_batch({"input_ids": batch["input_ids"][:, 1:]}, mesh),
        "other keys": lambda: hf.shard_batch(batch | {"pixel_values": ones}, mesh),
        "tiles of Phi": lambda: hf.prepare(
            model_of(CONFIGS["phi"]), mesh, replace(run, tiled_mlp_compute=True)
        ),
        "loss of Phi": lambda: hf.prepare(
            model_of(CONFIGS["phi"]), mesh, replace(run, tiled_loss_compute=True)
        ),
        "method": lambda: hf.prepare(model_of(llama), mesh, replace(run, method="tp")),
        "liger": lambda: hf.check_toggles(replace(run, model=replace(run.model, type="liger"))),
        "no labels": lambda: prepared(mesh, replace(run, tiled_loss_compute=True))(
            **{k: v for k, v in shard.items() if k != "shift_labels"}
        ),
        "different batches": lambda: list(other),
        "backend": lambda: hf.register(mesh, ring_backend="yunchang"),
        "ring mesh": lambda: (hf.register(ringed), model_of(llama)(**shard)),
    }
    return {name: message_of(mistake) for name, mistake in mistakes.items()}


def prepared(mesh: Mesh, run: RunConfig) -> PreTrainedModel:
    model = build("llama", "ulysses")
    hf.prepare(model, mesh, run)
    return model


def message_of(mistake: Callable[[], Any]) -> str:
    """Return the message of the ValueError that a call raises."""
    try:
        mistake()
    except ValueError as error:
        return str(error)
    return "nothing"
