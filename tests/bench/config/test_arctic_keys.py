"""Every key of an ArcticTraining recipe: mapped, ignored by name or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from bench.config import arctic, arctic_keys
from bench.config.arctic_keys import RULES
from tests.support.arctic import LEAST, ZERO, built


@pytest.mark.parametrize(
    ("key", "value", "field", "meant"),
    [
        ("model.type", "huggingface", "model.type", "torch"),
        ("model.dtype", "fp32", "dtype", "fp32"),
        ("model.disable_activation_checkpoint", True, "activation_checkpointing", False),
        ("model.hf_config_kwargs.tie_word_embeddings", True, "model.tie_word_embeddings", True),
        ("model.hf_config_kwargs.rms_norm_eps", "1e-6", "model.rms_norm_eps", 1e-6),
        ("deepspeed.bfloat16.enabled", True, "dtype", "bf16"),
        ("seq_parallel_communication_data_type", "float32", None, "fp32"),
        (f"{ZERO}.offload_optimizer.device", "none", "optimizer.offload", "none"),
        (f"{ZERO}.offload_param.device", None, "parameter_offload", "none"),
        (f"{ZERO}.reduce_bucket_size", 5e8, "reduce_bucket_size", 500_000_000),
        (f"{ZERO}.stage3_prefetch_bucket_size", 0, "zero_prefetch", False),
        (f"{ZERO}.prefetch_bucket_size", "auto", "zero_prefetch", True),
        ("optimizer.lr", "0.1%", "optimizer.learning_rate", 1e-3),
        ("data.max_length", "2^20", "seq_len", 1_048_576),
        ("data.max_length", "15_000_000", "seq_len", 15_000_000),
        ("data.max_length", "1.5M", "seq_len", 1_500_000),
        ("world_size", 8, None, 8),
        ("train_iters", 1, "steps", 1),
        ("exit_iteration", 2, "warmup_steps", 1),
    ],
)
def test_mapped(key: str, value: Any, field: str | None, meant: Any) -> None:
    fields, ignored = arctic.convert(built(LEAST | {key: value}))
    section, _, name = (field or key).rpartition(".")
    assert (fields[section] if section else fields)[name] == meant
    assert ignored == []


@pytest.mark.parametrize(("name", "preset"), arctic_keys._MODELS.items())
def test_models(name: str, preset: str) -> None:
    given = LEAST | {"model.name_or_path": name, "data.max_length": 64}
    fields, _ = arctic.convert(built(given))
    assert fields["model"]["name_or_path"] == preset


@pytest.mark.parametrize("key", [key for key, rule in RULES.items() if rule is None])
def test_ignored(key: str) -> None:
    fields, ignored = arctic.convert(built(LEAST | {key: {"what": "ever"}}))
    assert fields == arctic.convert(built(LEAST))[0]
    assert ignored in ([key], [key.partition(".")[0]])


REFUSED = {
    "type": ["dpo", "moe_trainer"],
    "micro_batch_size": ["some", 1.5, None],
    "gradient_accumulation_steps": [[1, 2]],
    "sequence_parallel_size": [True],
    "world_size": ["all"],
    "activation_checkpoint_cpu_offload": ["yes please"],
    "tiled_mlp_compute": [1],
    "seq_parallel_communication_data_type": ["fp16"],
    "seed": ["none"],
    "train_iters": ["1 epoch"],
    "exit_iteration": ["never"],
    "expert_parallel_size": [2],
    "arctic_moe": [True],
    "code": ["train.py"],
    "overfit_first_batch": [True],
    "model.type": ["random-weight-hf"],
    "model.name_or_path": ["Qwen/Qwen3-8B", "meta-llama/Meta-Llama-3-8B", "./model", None, []],
    "model.dtype": ["fp16", "half"],
    "model.attn_implementation": ["eager", "flex_attention"],
    "model.disable_activation_checkpoint": ["no"],
    "model.peft_config": [{"peft_type": "Lora", "r": 8}],
    "model.fp8_recipe": [{"type": "delayedscaling"}],
    "model.fp8_target_modules": [["q_proj"]],
    "model.hf_config_kwargs.tie_word_embeddings": ["maybe"],
    "model.hf_config_kwargs.vocab_size": ["big"],
    "model.hf_config_kwargs.hidden_size": ["big"],
    "model.hf_config_kwargs.intermediate_size": ["big"],
    "model.hf_config_kwargs.num_hidden_layers": ["deep"],
    "model.hf_config_kwargs.num_attention_heads": ["many"],
    "model.hf_config_kwargs.num_key_value_heads": ["few"],
    "model.hf_config_kwargs.head_dim": ["even"],
    "model.hf_config_kwargs.rms_norm_eps": ["small"],
    "model.hf_config_kwargs.rope_theta": ["large"],
    "data.type": ["dpo"],
    "data.max_length": ["long", "5X"],
    "optimizer.type": ["muon", "fused_adam_moe", "sgd"],
    "optimizer.learning_rate": ["fast"],
    "optimizer.lr": ["fast"],
    "optimizer.weight_decay": [0.1],
    "optimizer.betas": [[0.9, 0.95]],
    "scheduler.type": ["wsd"],
    "scheduler.name": ["linear", "cosine"],
    "scheduler.warmup_ratio": [0.1],
    "scheduler.num_warmup_steps": [10],
    "scheduler.num_decay_steps": [10],
    "scheduler.min_lr_ratio": [0.1],
    "scheduler.scheduler_specific_kwargs": [{"min_lr_rate": 0.1}],
    "scheduler.lr": [1e-5],
    "scheduler.learning_rate": [1e-5],
    "deepspeed.seq_parallel_communication_data_type": ["fp16"],
    "deepspeed.bf16.enabled": [False, "auto"],
    "deepspeed.bfloat16.enabled": [False],
    "deepspeed.bf16.bf16_master_weights_and_grads": [True],
    "deepspeed.bf16.bf16_optimizer_states": [True],
    "deepspeed.data_types.grad_accum_dtype": ["bf16"],
    "deepspeed.gradient_clipping": [1.0, "auto"],
    "deepspeed.gradient_predivide_factor": [2],
    "deepspeed.fp16": [{"enabled": True}, {"loss_scale": 0}, True],
    "deepspeed.amp": [{"enabled": True}],
    "deepspeed.communication_data_type": ["fp16"],
    f"{ZERO}.stage": [0, 1, 2],
    f"{ZERO}.reduce_bucket_size": ["auto"],
    f"{ZERO}.prefetch_bucket_size": ["some"],
    f"{ZERO}.stage3_prefetch_bucket_size": ["some"],
    f"{ZERO}.offload_optimizer.device": ["nvme"],
    f"{ZERO}.offload_optimizer.ratio": [0.3],
    f"{ZERO}.offload_param.device": ["nvme"],
    f"{ZERO}.zero_hpz_partition_size": [8],
    f"{ZERO}.mics_shard_size": [8],
}


@pytest.mark.parametrize("key", [key for key, rule in RULES.items() if rule is not None])
def test_refused(key: str) -> None:
    assert REFUSED.keys() <= RULES.keys()
    for value in REFUSED.get(key, [True, {"enabled": True}, {"type": "x"}]):
        with pytest.raises(ValueError, match=f"^{key} is .*; valid: .") as refusal:
            arctic.convert(built(LEAST | {key: value}))
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", [k for k, rule in RULES.items() if rule is arctic_keys._off])
def test_a_feature_that_is_off_is_fine(key: str) -> None:
    for value in (None, False, {}, {"enabled": False, "more": 1}):
        assert arctic.convert(built(LEAST | {key: value})) == arctic.convert(built(LEAST))
