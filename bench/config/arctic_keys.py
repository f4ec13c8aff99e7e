"""Rules for the keys of an ArcticTraining recipe; docs/recipes.md gives the reasons.

A rule maps a key to options of a run, or refuses its value; None ignores the key. A key without a
rule is unknown. A section has no rule, only its keys have.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from os.path import isdir
from reprlib import repr as shortened
from typing import Any

from odysseus.config.architecture import PRESETS

Rule = Callable[[str, Any], dict[str, Any]]
"""rule(key, value) -> options of a run by dotted name; ValueError if the value cannot be run."""


def _refusal(key: str, value: Any, valid: str) -> ValueError:
    return ValueError(f"{key} is {shortened(value)}; valid: {valid}")


def ignore(key: str, value: Any) -> dict[str, Any]:
    """Return no options: the rule of ignored keys."""
    return {}


def _number(key: str, value: Any) -> float:
    """Read a number as ArcticTraining does: also 1e-5, 2^20, 10%, 1.5M, 64Ki."""
    text = str(value).replace("_", "").strip().lower()
    match = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?:\^(\d+)|(%|[kmbt]i?))?", text)
    if match is None:
        raise _refusal(key, value, "a number, like 500000, 5e5, 500K, 2^19 or 512Ki")
    number, power, unit = match.groups()
    if unit == "%":
        return float(number) / 100
    scale = (1024 if (unit or "").endswith("i") else 1000) ** (" kmbt".find(unit[0]) if unit else 0)
    return float(number) ** int(power or 1) * scale


def _integer(key: str, value: Any) -> int:
    number = _number(key, value)
    if number != int(number):
        raise _refusal(key, value, "a whole number")
    return int(number)


def _boolean(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refusal(key, value, "true or false")
    return value


def _to(field: str, convert: Callable[[str, Any], Any]) -> Rule:
    """Make the rule of a key that sets one option to its converted value."""
    return lambda key, value: {field: convert(key, value)}


def _choice(field: str, meanings: dict[Any, Any]) -> Rule:
    """Make the rule of a key that sets one option, by a table of its valid values."""

    def chosen(key: str, value: Any) -> dict[str, Any]:
        if value not in list(meanings):
            raise _refusal(key, value, ", ".join(str(m) for m in meanings if m not in ("", None)))
        return {field: meanings[value]}

    return chosen


def _only(*valid: Any) -> Rule:
    """Make the rule of a key that must have one of these values, which every run has anyway."""

    def checked(key: str, value: Any) -> dict[str, Any]:
        if value not in valid:
            raise _refusal(key, value, " or ".join(str(v) for v in valid if v not in ("", None)))
        return {}

    return checked


def _equal_to(number: float) -> Rule:
    """Make the rule of a key that must have this number, which every run has anyway."""

    def checked(key: str, value: Any) -> dict[str, Any]:
        if _number(key, value) != number:
            raise _refusal(key, value, f"{number}")
        return {}

    return checked


def _off(key: str, value: Any) -> dict[str, Any]:
    """Refuse a feature that this suite does not have, unless it is switched off."""
    if value and not (isinstance(value, dict) and value.get("enabled") is False):
        raise _refusal(key, value, "leave it out, it is not supported")
    return {}


def _prefetch(key: str, value: Any) -> dict[str, Any]:
    """Read the number of elements that DeepSpeed prefetches; above 0 is zero_prefetch."""
    return {"zero_prefetch": value == "auto" or _number(key, value) > 0}


def _model(key: str, value: Any) -> str:
    """Return the preset of a model's name on the hub; return a checkpoint's folder unchanged."""
    if isinstance(value, str) and isdir(value):
        return value
    if value not in list(_MODELS):
        raise _refusal(key, value, f"{', '.join(_MODELS)}, or a checkpoint's folder")
    return _MODELS[value]


def _same_rule(prefix: str, names: str, rule: Rule | None) -> dict[str, Rule | None]:
    """Give one rule to each of these names, separated by spaces, after a prefix."""
    return {prefix + name: rule for name in names.split()}


_LLAMA31 = (
    "Llama-3.1-{}",
    "Llama-3.1-{}-Instruct",
    "Meta-Llama-3.1-{}",
    "Meta-Llama-3.1-{}-Instruct",
)
_MODELS = {f"meta-llama/{name.format('8B')}": "llama3-8b" for name in _LLAMA31}
_MODELS |= {f"meta-llama/{name.format('70B')}": "llama3-70b" for name in _LLAMA31}
_MODELS |= {"meta-llama/Llama-3.3-70B-Instruct": "llama3-70b", "Qwen/Qwen3-32B": "qwen3-32b"}
_MODELS |= {f"meta-llama/Llama-2-7b-{name}": "llama2-7b" for name in ("hf", "chat-hf")}
_MODELS |= {name: name for name in PRESETS}
# From the published checkpoints. ArcticTraining takes these if data.max_length is missing.
MAX_POSITION_EMBEDDINGS = {
    "llama2-7b": 4096,
    "llama3-8b": 131_072,
    "llama3-70b": 131_072,
    "qwen3-32b": 40_960,
}
_DTYPES = dict.fromkeys(("fp32", "float32", "float", "torch.float32"), "fp32")
_DTYPES |= dict.fromkeys(("bf16", "bfloat16", "bfloat", "torch.bfloat16"), "bf16")
_HOST = {"none": "none", "cpu": "cpu", None: "none"}
_ZERO = "deepspeed.zero_optimization."
_BUFFERS = (
    "nvme_path pin_memory buffer_count buffer_size max_in_cpu pipeline pipeline_read "
    "pipeline_write fast_init"
)
# DeepSpeed accepts these with and without the prefix stage3_.
_STAGE3 = (
    "max_live_parameters max_reuse_distance param_persistence_threshold "
    "model_persistence_threshold module_granularity_threshold allgather_sequential "
    "gather_16bit_weights_on_model_save use_all_reduce_for_fetch_params "
    "partition_stream_chunk_size"
)
_GRADIENT_DTYPE = _choice("seq_parallel_communication_data_type", _DTYPES)
_BF16 = _to("dtype", lambda key, value: "bf16" if _boolean(key, value) else "fp32")

# Sections that are ignored as a whole, with their valid keys.
IGNORED_SECTIONS = {
    "logger": "output_dir level print_output_ranks file_output_ranks",
    "wandb": "enable entity project name",
    "experiment_tracking": "type enable",
    "tokenizer": "type name_or_path tokenize_kwargs",
    "checkpoint": "type output_dir enabled auto_resume save_every_n_steps save_every_n_epochs "
    "save_end_of_training",
    "profiler": "enable start_step end_step output_dir schedule_wait schedule_warmup "
    "schedule_active record_shapes profile_memory with_stack with_flops",
    "memory_profiler": "enable output_dir max_entries",
}

RULES: dict[str, Rule | None] = {
    "type": _only("sft", "causal"),
    "micro_batch_size": _to("micro_batch_size", _integer),
    "gradient_accumulation_steps": _to("gradient_accumulation_steps", _integer),
    "sequence_parallel_size": _to("sequence_parallel_size", _integer),
    "world_size": _to("world_size", _integer),
    "activation_checkpoint_cpu_offload": _to("activation_checkpoint_cpu_offload", _boolean),
    "tiled_mlp_compute": _to("tiled_mlp_compute", _boolean),
    "seq_parallel_communication_data_type": _GRADIENT_DTYPE,
    "seed": _to("seed", _integer),
    "train_iters": _to("train_iters", _integer),
    "exit_iteration": _to("exit_iteration", _integer),
    "expert_parallel_size": _equal_to(1),
    "arctic_moe": _only("auto", False),
    **_same_rule("", "code overfit_first_batch", _off),
    **_same_rule(
        "",
        "skip_validation epochs min_iterations loss_log_interval train_log_iter_interval "
        "train_log_metrics_path eval_frequency eval_interval eval_log_iter_interval mem_profiler "
        "mem_profiler_dir mem_profiler_max_entries kill_switch_path",
        None,
    ),
    "model.type": lambda key, value: (
        _choice("model.type", {"huggingface": "torch", "liger": "liger", "": "torch"})(key, value)
        | ({"tiled_loss_compute": True} if value == "liger" else {})  # Liger's loss is tiled
    ),
    "model.name_or_path": _to("model.name_or_path", _model),
    "model.dtype": _choice("dtype", _DTYPES),
    "model.attn_implementation": _choice(
        "model.attn_implementation",
        {name: name for name in ("sdpa", "flash_attention_2", "flash_attention_3")},
    ),
    "model.disable_activation_checkpoint": _to(
        "activation_checkpointing", lambda key, value: not _boolean(key, value)
    ),
    "model.save_name": None,
    **_same_rule("model.", "peft_config fp8_recipe fp8_target_modules", _off),
    "model.hf_config_kwargs.use_cache": None,
    "model.hf_config_kwargs.tie_word_embeddings": _to("model.tie_word_embeddings", _boolean),
    **{
        f"model.hf_config_kwargs.{name}": _to(f"model.{name}", convert)
        for convert, names in {
            _integer: "vocab_size hidden_size intermediate_size num_hidden_layers "
            "num_attention_heads num_key_value_heads head_dim",
            _number: "rms_norm_eps rope_theta",
        }.items()
        for name in names.split()
    },
    "data.type": _only("", "sft", "causal"),
    "data.max_length": _to("seq_len", _integer),
    **_same_rule(
        "data.",
        "sources eval_sources train_eval_split num_proc dl_num_workers seed use_data_cache "
        "cache_processed_data cache_dir cache_fs_type expand_to_dp_size div_length mask_inputs "
        "always_max_length pad_to filter_samples pack_samples drop_last fuse_positions_prob "
        "repeat_to_pack_max_length ignore_empty_think",
        None,
    ),
    "optimizer.type": _only("", "fused_adam", "cpu_adam", "fusedadam", "cpu-adam"),
    "optimizer.learning_rate": _to("optimizer.learning_rate", _number),
    "optimizer.lr": _to("optimizer.learning_rate", _number),
    "optimizer.weight_decay": _equal_to(0.01),
    "optimizer.betas": _only([0.9, 0.999]),
    "scheduler.type": _only("", "huggingface"),
    "scheduler.name": _only("constant"),
    **_same_rule("scheduler.", "warmup_ratio num_warmup_steps num_decay_steps", _equal_to(0)),
    **_same_rule("scheduler.", "min_lr_ratio scheduler_specific_kwargs lr learning_rate", _off),
    "deepspeed.seq_parallel_communication_data_type": _GRADIENT_DTYPE,
    "deepspeed.bf16.enabled": _BF16,
    "deepspeed.bfloat16.enabled": _BF16,
    "deepspeed.data_types.grad_accum_dtype": _only(None, "fp32"),
    "deepspeed.gradient_clipping": _equal_to(0),
    "deepspeed.gradient_predivide_factor": _equal_to(1),
    **_same_rule(
        "deepspeed.",
        "fp16 amp optimizer scheduler prescale_gradients sparse_gradients communication_data_type "
        "torch_autocast elasticity autotuning compile compression_training data_efficiency "
        "curriculum_learning progressive_layer_drop quantize_training eigenvalue sparse_attention "
        "tensor_parallel pipeline hybrid_engine graph_harvesting "
        "bf16.bf16_master_weights_and_grads bf16.bf16_optimizer_states",
        _off,
    ),
    **_same_rule(
        "deepspeed.",
        "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps "
        "sequence_parallel_size steps_per_print wall_clock_breakdown memory_breakdown dump_state "
        "comms_logger tensorboard csv_monitor wandb comet flops_profiler aio checkpoint nebula "
        "activation_checkpointing zero_allow_untested_optimizer zero_force_ds_cpu_optimizer "
        "dataloader_drop_last use_node_local_storage load_universal_checkpoint disable_allgather "
        "bf16.immediate_grad_update bf16.check_grad_overflow timers",
        None,
    ),
    f"{_ZERO}stage": _equal_to(3),
    f"{_ZERO}reduce_bucket_size": _to("reduce_bucket_size", _integer),
    f"{_ZERO}offload_optimizer.device": _choice("optimizer.offload", _HOST | {"cpu": "masters"}),
    f"{_ZERO}offload_optimizer.ratio": _equal_to(1),
    f"{_ZERO}offload_param.device": _choice("parameter_offload", _HOST),
    **_same_rule(f"{_ZERO}offload_optimizer.", _BUFFERS, None),
    **_same_rule(f"{_ZERO}offload_param.", _BUFFERS, None),
    f"{_ZERO}zero_hpz_partition_size": _equal_to(1),
    f"{_ZERO}mics_shard_size": _equal_to(-1),
    **_same_rule(
        _ZERO,
        "zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients "
        "zeropp_loco_param mics_hierarchical_params_gather zenflow cpu_offload cpu_offload_param",
        _off,
    ),
    **_same_rule(
        _ZERO,
        "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions "
        "allgather_bucket_size overlap_comm load_from_fp32_weights elastic_checkpoint "
        "sub_group_size ignore_unused_parameters legacy_stage1 round_robin_gradients "
        "memory_efficient_linear pipeline_loading_checkpoint override_module_apply "
        "log_trace_cache_warnings enable_sanity_checks leaf_module cpu_offload_use_pin_memory "
        "save_muon_momentum_buffer_in_memory stage3_gather_fp16_weights_on_model_save",
        None,
    ),
    **_same_rule(_ZERO, "prefetch_bucket_size stage3_prefetch_bucket_size", _prefetch),
    **_same_rule(_ZERO, _STAGE3, None),
    **_same_rule(f"{_ZERO}stage3_", _STAGE3, None),
}
for _section, _names in IGNORED_SECTIONS.items():
    RULES |= _same_rule(f"{_section}.", _names, None)

SECTIONS = {key[: dot.start()] for key in RULES for dot in re.finditer(r"\.", key)}
REQUIRED = {
    "model.name_or_path": ", ".join(_MODELS),
    "deepspeed.zero_optimization.stage": "3 (left out, ArcticTraining takes less)",
}
# Defaults of ArcticTraining and DeepSpeed, by their keys.
DEFAULTS = {
    "sequence_parallel_size": 1,
    "seed": 42,
    "model.dtype": "bf16",
    "model.attn_implementation": "sdpa",
    "model.disable_activation_checkpoint": False,
    "deepspeed.zero_optimization.reduce_bucket_size": 500_000_000,
}
# Options that every recipe has here, unless its keys set them.
FIXED = {
    "method": "ulysses",
    "optimizer.learning_rate": 5e-4,
    "activation_checkpoint_cpu_offload": False,
    "data.repeat": True,
    "timeout_s": 7 * 24 * 3600,  # a recipe has no limit, and its steps may take hours
}
