"""Convert a Hugging Face ``config.json`` to an architecture and back.

Of Llama, Mistral, Mixtral, Qwen2, Qwen3 and Qwen3-MoE. A missing key has the default of
Transformers' configuration class of that model.
"""

from __future__ import annotations

import json
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from odysseus.config import hf_experts
from odysseus.config.architecture import Architecture
from odysseus.config.hf_values import boolean, integer, number, refusal

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads"),
)
_MAX_LAYERS = 10_000
# Fixed properties of this decoder, which are also the defaults of missing keys.
_ONLY = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
_ROPE_LENGTH = "original_max_position_embeddings"
# The keys of each kind of frequency scaling; fields of Architecture are named rope_ and the key.
_KEYS_OF_ROPE = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ROPE_LENGTH),
    "yarn": ("factor", "beta_fast", "beta_slow", "attention_factor", _ROPE_LENGTH),
}


def read(folder: Path) -> Architecture:
    """Read the architecture that a checkpoint's ``config.json`` describes.

    Raises:
        ValueError: the file is missing or damaged, or needs a feature that this decoder lacks.
    """
    file = folder / "config.json"
    given = read_object(file)
    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise refusal(file, "model_type", kind, ", ".join(_CLASSES))
    for key, valid in _ONLY.items():
        if given.get(key, valid) != valid:
            raise refusal(file, key, given[key], json.dumps(valid))
    if kind != "llama" and given.get("mlp_bias", False) is not False:
        raise refusal(file, "mlp_bias", given["mlp_bias"], "false")
    sizes: dict[str, Any] = {name: integer(file, given, name) for name in _SIZES}
    if sizes["num_hidden_layers"] > _MAX_LAYERS:
        raise refusal(
            file, "num_hidden_layers", sizes["num_hidden_layers"], f"at most {_MAX_LAYERS}"
        )
    unbiased = kind in ("mistral", "mixtral")
    biased = kind == "qwen2" or (not unbiased and boolean(file, given, "attention_bias"))
    of_heads: dict[str, Any] = _heads(file, given, kind)
    if kind in hf_experts.KINDS:
        sizes |= hf_experts.read(file, given, kind)
    return Architecture(
        **sizes,
        **of_heads,
        rms_norm_eps=number(file, given, "rms_norm_eps", 1e-5 if kind == "mixtral" else 1e-6),
        attention_bias=biased,
        attention_output_bias=biased and kind != "qwen2",
        mlp_bias=boolean(file, given, "mlp_bias"),
        use_qk_norm=kind in ("qwen3", "qwen3_moe"),
        sliding_window=_window(file, given, kind),
        tie_word_embeddings=boolean(file, given, "tie_word_embeddings"),
        **_rope(file, given, 1e6 if kind == "mixtral" else 1e4),
    )


def to_config(architecture: Architecture, positions: int) -> dict[str, Any]:
    """Return the ``config.json`` of an architecture, for Transformers to load.

    Args:
        positions: Value of ``max_position_embeddings``, in tokens.

    Raises:
        ValueError: no model class of Transformers has this architecture.
    """
    a = architecture
    kind = _model_type(a)
    if a.hidden_size % a.num_attention_heads:
        raise ValueError(
            f"model.hidden_size = {a.hidden_size} does not divide by model.num_attention_heads = "
            f"{a.num_attention_heads}, as Transformers requires; valid: a multiple"
        )
    scaling: dict[str, Any] | None = None
    if a.rope_factor != 1:
        scaling = {key: getattr(a, f"rope_{key}") for key in _KEYS_OF_ROPE[a.rope_type]}
        if not a.rope_attention_factor:
            scaling.pop("attention_factor", None)
        scaling["rope_type"] = a.rope_type
    return {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        **{name: getattr(a, name) for name in _SIZES},
        "num_key_value_heads": a.num_key_value_heads,
        "head_dim": a.head_dim,
        "rms_norm_eps": a.rms_norm_eps,
        "attention_bias": a.attention_bias,
        "mlp_bias": a.mlp_bias,
        **({} if a.sliding_window is None else {"sliding_window": a.sliding_window}),
        "tie_word_embeddings": a.tie_word_embeddings,
        "rope_theta": a.rope_theta,
        "rope_scaling": scaling,
        "max_position_embeddings": positions,
        "hidden_act": "silu",
        **(hf_experts.write(a, kind) if a.num_experts else {}),
    }


def _model_type(a: Architecture) -> str:
    """Return the model type whose class has an architecture's switches.

    Raises:
        ValueError: none has.
    """
    biases = a.attention_bias, a.attention_output_bias
    if biases[0] != biases[1]:
        if not a.attention_bias or a.use_qk_norm:
            raise ValueError(
                "no model of Transformers has these biases; valid: model.attention_output_bias "
                "equal to model.attention_bias, or only the latter without model.use_qk_norm"
            )
        kind = "qwen2"
    else:
        kind = "qwen3" if a.use_qk_norm else "llama"
    if a.num_experts:
        return hf_experts.model_type(a, kind)
    if a.mlp_bias and kind != "llama":
        raise ValueError(
            f"no {kind} of Transformers has model.mlp_bias = true; valid: without "
            "model.use_qk_norm, and with model.attention_output_bias equal to model.attention_bias"
        )
    if a.sliding_window is None:
        return kind
    if kind != "llama" or a.attention_bias or a.mlp_bias:
        raise ValueError(
            f"no model of Transformers has model.sliding_window = {a.sliding_window} with these "
            "other switches; valid: without model.use_qk_norm and biases"
        )
    return "mistral"


def with_architecture(
    given: dict[str, Any], architecture: Architecture, positions: int
) -> dict[str, Any]:
    """Return a ``config.json`` with its architecture replaced; other keys are kept.

    Args:
        given: Content of the ``config.json``.
        architecture: New architecture.
        positions: Least value of ``max_position_embeddings``, in tokens; a larger one is kept.

    Raises:
        ValueError: no model class of Transformers has this architecture.
    """
    before = given.get("max_position_embeddings")
    known = max(positions, before if isinstance(before, int) else 0)
    replaced = ("rope_parameters", "layer_types", "sliding_window", "use_sliding_window")
    kept = {key: value for key, value in given.items() if key not in replaced}
    return kept | to_config(architecture, known)


def read_object(file: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError:
        raise ValueError(f"{file} cannot be read; valid: a Hugging Face checkpoint") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {str(error)[:80]}; valid: a JSON object") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is {shortened(content)}; valid: a JSON object")
    return content


def _heads(file: Path, given: dict[str, Any], kind: str) -> dict[str, int]:
    """Return num_key_value_heads and head_dim."""
    heads, hidden = given["num_attention_heads"], given["hidden_size"]
    known = {"head_dim": 128} if kind == "qwen3" else {"head_dim": None}
    known |= {"num_key_value_heads": None} if kind == "llama" else {}
    known |= {key: given[key] for key in ("head_dim", "num_key_value_heads") if key in given}
    if known.get("num_key_value_heads", heads) is None:
        known["num_key_value_heads"] = heads
    if known["head_dim"] is None:
        if heads < 1 or hidden % heads:
            raise refusal(file, "hidden_size", hidden, f"a multiple of its {heads} heads")
        known["head_dim"] = hidden // heads
    return {key: integer(file, known, key) for key in ("head_dim", "num_key_value_heads")}


def _window(file: Path, given: dict[str, Any], kind: str) -> int | None:
    """Return Mistral's sliding window; None without one.

    Raises:
        ValueError: blocks differ in what they see, or another model has a window.
    """
    window = given.get("sliding_window", 4096 if kind == "mistral" else None)
    if kind.startswith("qwen") and not given.get("use_sliding_window", False):
        window = None
    types = given.get("layer_types") or []
    valid = "sliding_attention" if window is not None and kind == "mistral" else "full_attention"
    if not isinstance(types, list) or set(map(str, types)) - {valid}:
        raise refusal(file, "layer_types", types, f"{valid} only")
    if window is None:
        return None
    if kind != "mistral":
        raise refusal(file, "sliding_window", window, "null")
    return integer(file, {"sliding_window": window}, "sliding_window")


def _rope(file: Path, given: dict[str, Any], theta: float) -> dict[str, Any]:
    """Return the fields of rotary frequencies; `theta` is the base if none is given.

    Transformers 4 writes rope_scaling, 5 writes rope_parameters. If a file has both, Transformers 5
    takes rope_scaling, and so does this function.
    """
    name = "rope_scaling" if given.get("rope_scaling") else "rope_parameters"
    rope = given.get(name) or {}
    if not isinstance(rope, dict):
        raise refusal(file, name, rope, "an object")
    part = rope.get("partial_rotary_factor", 1.0)
    if part != 1:
        raise refusal(file, "partial_rotary_factor", part, "1.0")
    base = rope if rope.get("rope_theta") is not None else given  # version 5 moved it inside
    rope_fields: dict[str, Any] = {"rope_theta": number(file, base, "rope_theta", theta)}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _KEYS_OF_ROPE:
        raise refusal(file, f"{name}.rope_type", kind, ", ".join(_KEYS_OF_ROPE))
    known = {*_KEYS_OF_ROPE[kind], "rope_type", "type", "rope_theta", "partial_rotary_factor"}
    for key in sorted(map(str, rope.keys() - known)):
        valid = ", ".join(_KEYS_OF_ROPE[kind]) or "no other key"
        raise refusal(file, f"{name}.{key}", rope[key], f"of rope_type {kind}: {valid}")
    if kind != "default":
        rope_fields["rope_type"] = kind
    for key in _KEYS_OF_ROPE[kind]:
        if key == _ROPE_LENGTH:  # as Transformers looks for it
            length = {key: given.get("max_position_embeddings")} | rope | given
            rope_fields[f"rope_{key}"] = integer(file, length, key)
        elif kind == "llama3" or key == "factor" or rope.get(key) is not None:
            rope_fields[f"rope_{key}"] = number(file, rope, key, None)
    factor = rope_fields.get("rope_attention_factor", 1)
    if rope_fields.get("rope_factor") == 1 and factor != 1:
        raise refusal(file, f"{name}.attention_factor", factor, "none with a factor of 1")
    return rope_fields
