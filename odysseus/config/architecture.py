"""Sizes of a Llama-family decoder, under their Hugging Face names.

>>> PRESETS["llama3-8b"].num_key_value_heads
8
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from reprlib import repr as shortened
from typing import Any

_IN_PROPORTION = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
_WIDTHS = {*_IN_PROPORTION, "head_dim"}
_OF_EXPERTS = ("num_experts", "num_experts_per_tok", "shared_expert_intermediate_size")
_MAY_BE_ZERO = (
    *("rms_norm_eps", "rope_attention_factor", *_OF_EXPERTS),
    *("router_aux_loss_coef", "router_z_loss_coef"),
)
ROPE_TYPES = ("llama3", "linear", "yarn")
SCORING_FUNCTIONS = ("softmax", "sigmoid")
_MOST = {"num_hidden_layers": 10_000}
"""Largest values; other sizes are at most 2^24."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes and switches of a decoder, named as in a Hugging Face ``config.json``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0
    """Factor of the frequency scaling (``rope_scaling``); 1 switches it off."""
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_max_position_embeddings: int = 8192
    rope_type: str = "llama3"
    """Kind of that scaling: llama3, linear or yarn."""
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_attention_factor: float = 0.0
    """Yarn's factor of cos and sin; 0 is 0.1·ln(rope_factor) + 1 (arXiv 2309.00071 §3.4)."""
    attention_bias: bool = False
    """Whether the q, k and v projections have biases."""
    attention_output_bias: bool = False
    """Whether the output projection has a bias. ``attention_bias`` of Llama and Qwen3 sets both."""
    mlp_bias: bool = False
    """Whether the MLP's projections have biases (Llama)."""
    use_qk_norm: bool = False
    """Whether every query and key head has an RMSNorm (Qwen3)."""
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    """Tokens that a token sees, its own included; a run's samples may not be longer."""
    num_experts: int = 0
    """Experts of each block, ``intermediate_size`` wide; 0 is one MLP for all tokens."""
    num_experts_per_tok: int = 0
    """Experts that compute a token."""
    scoring_func: str = "softmax"
    """Function of the router's logits whose largest values choose the experts and weight them."""
    norm_topk_prob: bool = True
    """Whether the weights of a token's experts are divided by their sum."""
    shared_expert_intermediate_size: int = 0
    """Width of an MLP that computes every token beside its experts; 0 is none."""
    router_aux_loss_coef: float = 0.0
    """Coefficient of the load-balancing loss (Fedus et al., arXiv 2101.03961)."""
    router_z_loss_coef: float = 0.0
    """Coefficient of the router's z loss (Zoph et al., arXiv 2202.08906)."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            least_is_zero = f.name in _MAY_BE_ZERO and value == 0
            if f.type == "int" and value < 1 and not least_is_zero:
                least = 0 if f.name in _MAY_BE_ZERO else 1
                raise ValueError(f"model.{f.name} is {value}; it must be at least {least}")
            if f.type == "int" and value > (most := _MOST.get(f.name, 2**24)):
                raise ValueError(f"model.{f.name} is {shortened(value)}; it must be at most {most}")
            if f.type == "float" and not (0 < value < inf or least_is_zero):
                raise ValueError(f"model.{f.name} is {value}; it must be above 0 and finite")
        if self.rope_type not in ROPE_TYPES:
            raise ValueError(
                f"model.rope_type is {shortened(self.rope_type)}; valid: {', '.join(ROPE_TYPES)}"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(
                f"model.sliding_window is {self.sliding_window}; it must be at least 1"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"model.num_key_value_heads is {self.num_key_value_heads}; it must divide "
                f"model.num_attention_heads = {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"model.head_dim is {self.head_dim}; rotary embedding needs an even head_dim"
            )

        self._check_experts()

    def _check_experts(self) -> None:
        if self.scoring_func not in SCORING_FUNCTIONS:
            raise ValueError(
                f"model.scoring_func is {shortened(self.scoring_func)}; valid: "
                f"{', '.join(SCORING_FUNCTIONS)}"
            )
        if not self.num_experts:
            coefficients = "router_aux_loss_coef", "router_z_loss_coef"
            for name in (*_OF_EXPERTS[1:], "scoring_func", "norm_topk_prob", *coefficients):
                value, plain = getattr(self, name), _DEFAULTS[name]
                if value != plain:
                    raise ValueError(
                        f"model.{name} is {str(value).lower()} without experts; valid: "
                        f"{str(plain).lower()}, or model.num_experts above 0"
                    )
            return
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"model.num_experts_per_tok is {self.num_experts_per_tok}; valid: 1 to "
                f"model.num_experts = {self.num_experts}"
            )
        if self.mlp_bias:
            raise ValueError(
                "model.mlp_bias = true is not for experts, which have no biases; valid: false, or "
                "model.num_experts = 0"
            )

    @property
    def query_width(self) -> int:
        """Elements of one token's queries over all heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Elements of one token's keys (or values) over all kv heads."""
        return self.num_key_value_heads * self.head_dim


ARCHITECTURE_FIELDS = tuple(f.name for f in fields(Architecture))
_DEFAULTS = {f.name: f.default for f in fields(Architecture)}

PRESETS: dict[str, Architecture] = {
    # Small models for byte tokens; eight or more query heads, for up to eight ranks.
    "tiny": Architecture(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
    ),
    "small": Architecture(  # 95 million parameters
        vocab_size=256,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
    ),
    # meta-llama/Llama-2-7b-hf, config.json
    "llama2-7b": Architecture(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
    ),
    # meta-llama/Llama-3.1-8B, config.json
    "llama3-8b": Architecture(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rope_theta=500_000.0,
        rope_factor=8.0,
    ),
    # meta-llama/Llama-3.1-70B, config.json
    "llama3-70b": Architecture(
        vocab_size=128_256,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        rope_theta=500_000.0,
        rope_factor=8.0,
    ),
    # Qwen/Qwen3-32B, config.json
    "qwen3-32b": Architecture(
        vocab_size=151_936,
        hidden_size=5120,
        intermediate_size=25_600,
        num_hidden_layers=64,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_theta=1_000_000.0,
        use_qk_norm=True,
    ),
    # mistralai/Mixtral-8x7B-v0.1, config.json
    "mixtral-8x7b": Architecture(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rope_theta=1_000_000.0,
        num_experts=8,
        num_experts_per_tok=2,
    ),
    # Qwen/Qwen3-30B-A3B, config.json; the width of an expert is its moe_intermediate_size
    "qwen3-30b-a3b": Architecture(
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_theta=1_000_000.0,
        use_qk_norm=True,
        num_experts=128,
        num_experts_per_tok=8,
    ),
}


def preset(name: str) -> Architecture:
    """Return the architecture of a preset.

    Raises:
        ValueError: no preset has this name.
    """
    if name not in PRESETS:
        raise ValueError(
            f"model.name_or_path is {name!r}; valid presets: {', '.join(PRESETS)}; or a folder "
            "with a Hugging Face checkpoint"
        )
    return PRESETS[name]


def with_overrides(base: Architecture, overrides: dict[str, Any]) -> Architecture:
    """Return an architecture with some of its fields replaced.

    If ``hidden_size`` or ``num_attention_heads`` is overridden and ``head_dim`` is not, the latter
    becomes ``hidden_size / num_attention_heads``. ``num_key_value_heads`` is kept.

    Raises:
        ValueError: the sizes do not fit together.
    """
    sizes = {f.name: getattr(base, f.name) for f in fields(Architecture)} | overrides
    reshaped = overrides.keys() & {"hidden_size", "num_attention_heads"}
    if reshaped and "head_dim" not in overrides:
        hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
        if heads < 1 or hidden % heads:
            raise ValueError(
                f"model.hidden_size = {hidden} does not divide by "
                f"model.num_attention_heads = {heads}; set model.head_dim or change one of them"
            )
        sizes["head_dim"] = hidden // heads
    return Architecture(**sizes)


def in_proportion(base: Architecture, overrides: dict[str, Any]) -> dict[str, int]:
    """Return the sizes that would be in proportion to an overridden ``hidden_size``, by name: the
    MLP's width, and the heads at the same ``head_dim``.

    Empty if no ``hidden_size`` is overridden, or another width is too.
    """
    if "hidden_size" not in overrides or overrides.keys() & _WIDTHS:
        return {}
    factor = overrides["hidden_size"] / base.hidden_size
    wanted = {name: getattr(base, name) * factor for name in _IN_PROPORTION}
    return {name: max(1, round(size)) for name, size in wanted.items() if factor != 1}
