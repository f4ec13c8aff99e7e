"""ArcticTraining recipes: one with many keys, and what the shortest has."""

from __future__ import annotations

from typing import Any

RECIPE = """
type: sft
micro_batch_size: 2
gradient_accumulation_steps: 3
sequence_parallel_size: 4
activation_checkpoint_cpu_offload: true
tiled_mlp_compute: true
seed: 7
epochs: 2
train_iters: 1K
exit_iteration: 12
min_iterations: 12
kill_switch_path: /tmp/stop
deepspeed:
  steps_per_print: 5
  seq_parallel_communication_data_type: bf16
  bf16:
    enabled: true
  fp16:
    enabled: false
  gradient_clipping: 0.0
  zero_optimization:
    stage: 3
    reduce_bucket_size: 1.25e8
    overlap_comm: true
    stage3_max_live_parameters: 3e7
    offload_optimizer:
      device: cpu
      pin_memory: true
    offload_param:
      device: cpu
model:
  type: liger
  name_or_path: meta-llama/Llama-3.1-70B-Instruct
  attn_implementation: flash_attention_3
  dtype: bfloat16
  save_name: mine
  hf_config_kwargs:
    num_hidden_layers: 4
    rope_theta: 1e6
data:
  sources:
    - HuggingFaceH4/ultrachat_200k
    - type: huggingface_instruct
      role_mapping: {question: user}
  max_length: 128Ki
  pack_samples: true
  cache_dir: /tmp/cache
optimizer:
  type: cpu_adam
  learning_rate: 2e-5
  betas: [0.9, 0.999]
scheduler:
  name: constant
logger:
  level: WARNING
  print_output_ranks: [0, 1]
wandb:
  enable: true
checkpoint:
  - type: huggingface
    output_dir: out
  - {type: deepspeed, output_dir: out, auto_resume: true}
"""
"""A recipe with a key of each kind."""

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
