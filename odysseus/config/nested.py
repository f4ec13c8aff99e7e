"""The nested groups of a run's configuration: model, optimizer and data."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from os.path import isdir  # false for a name that is too long; pathlib raises
from pathlib import Path
from typing import Literal

from odysseus.config.architecture import ARCHITECTURE_FIELDS, PRESETS
from odysseus.config.option_group import OptionGroup


@dataclass(frozen=True, kw_only=True)
class ModelOptions(OptionGroup):
    """Model. An architecture field left out keeps the preset's or the checkpoint's value.

    Args:
        name_or_path: Preset of a published architecture: tiny, small (95 M parameters), llama2-7b,
            llama3-8b, llama3-70b, qwen3-32b, or with experts mixtral-8x7b or qwen3-30b-a3b. Or a
            folder with a Hugging Face checkpoint of a Llama, Mistral, Mixtral, Qwen2, Qwen3 or
            Qwen3-MoE model: config.json, and safetensors to read weights from.
        implementation: Model code. native is this project's; transformers is Transformers' own,
            unmodified, with this project's attention and memory savings (method ulysses).
        type: Kernels of norm, rotary embedding, SwiGLU and tiled loss: PyTorch's and this
            project's (torch), or liger-kernel's (liger, CUDA).
        attn_implementation: Attention kernel. sdpa is PyTorch's choice. cudnn (on H100, H200, B200
            and B300), flash_attention_2 and flash_attention_3 (of the package
            flash_attn_interface) need CUDA and bf16. auto chooses by GPU and packages
            (docs/recipes.md).
        vocab_size: Rows of the embedding; at least 256, for byte tokens.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP, or of each expert.
        num_hidden_layers: Number of decoder blocks.
        num_attention_heads: Number of query heads.
        num_key_value_heads: Number of key and value heads (grouped-query attention).
        head_dim: Elements of one head; follows an overridden hidden_size or num_attention_heads.
        rms_norm_eps: Epsilon added to the mean square in RMSNorm.
        rope_theta: Base of the rotary frequencies.
        rope_factor: Factor of the rotary frequencies' scaling; 1 is off.
        rope_low_freq_factor: Wavelengths above original length / this are stretched by rope_factor.
        rope_high_freq_factor: Wavelengths below original length / this are kept.
        rope_original_max_position_embeddings: Original length of that scaling, in tokens.
        rope_type: Kind of that scaling, as in Transformers.
        rope_beta_fast: Turns in the original length above which yarn keeps a frequency.
        rope_beta_slow: Turns in the original length below which yarn divides it by rope_factor.
        rope_attention_factor: Yarn's factor of cos and sin; 0 takes it from rope_factor.
        attention_bias: Biases on the q, k and v projections.
        attention_output_bias: Bias on the attention's output projection.
        mlp_bias: Biases on the MLP's projections (Llama).
        use_qk_norm: RMSNorm on each query and key head (Qwen3).
        tie_word_embeddings: Use the embedding's weight as the head's weight.
        sliding_window: Tokens that a token sees (Mistral); seq_len may not be larger.
        num_experts: Experts of a block; 0 is one MLP for all tokens.
        num_experts_per_tok: Experts that compute a token, those that the router scores highest.
        scoring_func: Function of the router's logits that scores experts.
        norm_topk_prob: Divide the scores of a token's experts by their sum.
        shared_expert_intermediate_size: Width of an MLP for every token beside its experts; 0 is
            none.
        router_aux_loss_coef: Coefficient of the load-balancing loss, added to the loss.
        router_z_loss_coef: Coefficient of the mean square of the log-sum-exp of router logits.
    """

    name_or_path: str = "tiny"
    implementation: Literal["native", "transformers"] = "native"
    type: Literal["torch", "liger"] = "torch"
    attn_implementation: Literal[
        "auto", "sdpa", "cudnn", "flash_attention_2", "flash_attention_3"
    ] = "auto"
    vocab_size: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float | None = None
    rope_theta: float | None = None
    rope_factor: float | None = None
    rope_low_freq_factor: float | None = None
    rope_high_freq_factor: float | None = None
    rope_original_max_position_embeddings: int | None = None
    rope_type: Literal["llama3", "linear", "yarn"] | None = None
    rope_beta_fast: float | None = None
    rope_beta_slow: float | None = None
    rope_attention_factor: float | None = None
    attention_bias: bool | None = None
    attention_output_bias: bool | None = None
    mlp_bias: bool | None = None
    use_qk_norm: bool | None = None
    tie_word_embeddings: bool | None = None
    sliding_window: int | None = None
    num_experts: int | None = None
    num_experts_per_tok: int | None = None
    scoring_func: Literal["softmax", "sigmoid"] | None = None
    norm_topk_prob: bool | None = None
    shared_expert_intermediate_size: int | None = None
    router_aux_loss_coef: float | None = None
    router_z_loss_coef: float | None = None

    @property
    def checkpoint(self) -> Path | None:
        """Folder of the checkpoint; None for a preset."""
        name, folder = self.name_or_path, Path(self.name_or_path)
        return folder if name and name not in PRESETS and isdir(folder) else None

    @property
    def tokenizer(self) -> Path | None:
        """Path of the checkpoint's ``tokenizer.json``; None if there is no such file."""
        file = self.checkpoint / "tokenizer.json" if self.checkpoint else None
        return file if file and file.is_file() else None

    @property
    def overrides(self) -> dict[str, int | float | bool | str]:
        """Architecture fields that are set, by name."""
        values = {name: getattr(self, name) for name in ARCHITECTURE_FIELDS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def label(self) -> str:
        """Label of the preset or folder with its overrides, e.g. ``tiny(num_hidden_layers=2)``."""
        changed = ", ".join(f"{name}={value}" for name, value in self.overrides.items())
        return f"{self.name_or_path}({changed})" if changed else self.name_or_path


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(OptionGroup):
    """Optimizer of the sharded parameters.

    Args:
        type: AdamW, with PyTorch's default betas and weight decay.
        learning_rate: Learning rate, the same in every step.
        offload: Where the optimizer's states and its own fp32 weights are kept and updated. none is
            the device that computes; cpu is host memory, beside fp32 shards on the device. masters
            is host memory alone: the device keeps its shards in the compute dtype, and sends each
            gradient to the host as soon as it is reduced (ZeRO-Offload).
    """

    type: Literal["adamw"] = "adamw"
    learning_rate: float = 1e-3
    offload: Literal["none", "cpu", "masters"] = "none"

    def check(self) -> None:
        """Raise ValueError unless the learning rate is a finite number above 0."""
        if not 0 < self.learning_rate < inf:
            raise ValueError(
                f"optimizer.learning_rate is {self.learning_rate}; it must be above 0 and finite"
            )


@dataclass(frozen=True, kw_only=True)
class DataOptions(OptionGroup):
    """Text that the model is trained on.

    Args:
        path: UTF-8 text file, or a dataset of texts or conversations: .jsonl, .parquet or .arrow.
            A token is one byte, or as the checkpoint's tokenizer.json has it. Empty takes the
            English text that every CPython carries.
        repeat: Read the text again from its beginning where a sample is longer than the text.
        pack: Split the text at blank lines, or a dataset at its rows, into documents and pack these
            into samples. No token attends to another document or predicts its first token;
            positions begin again at 0 in every document.
    """

    path: str = ""
    repeat: bool = False
    pack: bool = False
