"""The nested groups of a run's configuration: model, optimizer, data; one frozen dataclass each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from odysseus.config.architecture import ARCHITECTURE_FIELDS, PRESETS


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model. A field left out keeps the preset's value.

    Args:
        name_or_path: Preset of a published architecture: tiny, small (95 M parameters), llama2-7b,
            llama3-8b, llama3-70b or qwen3-32b. Or a folder with a Hugging Face checkpoint of a
            Llama, Mistral, Qwen2 or Qwen3 model: config.json, and safetensors that are read.
        implementation: Whose model: this project's (native), or Transformers' own, unmodified, with
            this project's attention and memory tricks (method ulysses).
        type: Kernels of norm, rotary embedding, SwiGLU and tiled loss: PyTorch's and this
            project's, or liger-kernel's (CUDA).
        attn_implementation: Attention kernel. sdpa is PyTorch's; flash_attention_2 and
            flash_attention_3 need CUDA and their package; auto takes the best there is.
        vocab_size: Rows of the embedding; at least 256, for byte tokens.
        hidden_size: Width d of the residual stream.
        intermediate_size: Width i of the MLP.
        num_hidden_layers: Number of decoder blocks.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads (grouped-query attention).
        head_dim: Elements of one head; follows an overridden hidden_size or num_attention_heads.
        rms_norm_eps: Added to the mean square inside RMSNorm.
        rope_theta: Base of the rotary frequencies.
        rope_factor: Llama-3 frequency scaling; 1 is off.
        rope_low_freq_factor: Wavelengths above original length / this are stretched by the factor.
        rope_high_freq_factor: Wavelengths below original length / this are kept.
        rope_original_max_position_embeddings: The original length, in tokens.
        attention_bias: Biases on the q, k and v projections.
        attention_output_bias: A bias on the attention's output projection.
        use_qk_norm: RMSNorm on each query and key head (Qwen3).
        tie_word_embeddings: The head's weight is the embedding's.
    """

    name_or_path: str = "tiny"
    implementation: Literal["native", "transformers"] = "native"
    type: Literal["torch", "liger"] = "torch"
    attn_implementation: Literal["auto", "sdpa", "flash_attention_2", "flash_attention_3"] = "auto"
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
    attention_bias: bool | None = None
    attention_output_bias: bool | None = None
    use_qk_norm: bool | None = None
    tie_word_embeddings: bool | None = None

    @property
    def checkpoint(self) -> Path | None:
        """The folder that the model is in, unless it is a preset."""
        name, folder = self.name_or_path, Path(self.name_or_path)
        return folder if name and name not in PRESETS and folder.is_dir() else None

    @property
    def tokenizer(self) -> Path | None:
        """The checkpoint's own tokenizer, if it brings one."""
        file = self.checkpoint / "tokenizer.json" if self.checkpoint else None
        return file if file and file.is_file() else None

    @property
    def overrides(self) -> dict[str, int | float | bool]:
        """The architecture fields that were given, by name."""
        given = {name: getattr(self, name) for name in ARCHITECTURE_FIELDS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def label(self) -> str:
        """The preset and what was changed in it, e.g. ``tiny(num_hidden_layers=2)``."""
        changed = ", ".join(f"{name}={value}" for name, value in self.overrides.items())
        return f"{self.name_or_path}({changed})" if changed else self.name_or_path


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """The optimizer of the sharded parameters.

    Args:
        type: AdamW, with PyTorch's default betas and weight decay.
        learning_rate: Constant learning rate.
        offload: Where the optimizer's states and its own fp32 weights are kept and updated: none
            is the device, cpu is host memory.
    """

    type: Literal["adamw"] = "adamw"
    learning_rate: float = 1e-3
    offload: Literal["none", "cpu"] = "none"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What the model reads.

    Args:
        path: UTF-8 text file, one token a byte, or as the checkpoint's tokenizer.json has them;
            empty takes the English text every CPython carries.
        repeat: Let a sample longer than the text read it over again, for lengths that no text at
            hand has.
        pack: Take the text as documents, separated by blank lines and packed into samples: no token
            attends to another document's or foretells its first one; positions begin anew.
    """

    path: str = ""
    repeat: bool = False
    pack: bool = False


def flags_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(flag, value) of every field of a run's configuration, those of groups with dots."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from flags_of(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value
