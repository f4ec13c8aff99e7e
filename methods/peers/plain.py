"""A Llama of PyTorch's own modules, one weight each as in Hugging Face's, for peers to spread.

B batch, S tokens, D width, F heads, K elements of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from odysseus.config.architecture import Architecture
from odysseus.config.run import RunConfig
from odysseus.io import checkpoint
from odysseus.io.text import Batch
from odysseus.method import ATTENTION_SPLIT, MLP_SPLIT
from odysseus.model.attention import sdpa
from odysseus.model.rotary import rotary_table
from odysseus.parallel import sharding
from odysseus.parallel.mesh import Axis
from odysseus.training.block_trainer import Stream

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Linear = Callable[[int, int, str], nn.Module]
"""linear(width_in, width_out, name): a layer without bias, of this name in a block."""
Make = Callable[[], nn.Module]


def plain_linear(width_in: int, width_out: int, name: str) -> nn.Module:
    return nn.Linear(width_in, width_out, bias=False)


class Attention(nn.Module):
    def __init__(self, a: Architecture, attend: Attend, linear: Linear = plain_linear) -> None:
        super().__init__()
        self.head_dim, self.attend = a.head_dim, attend
        self.q_proj = linear(a.hidden_size, a.query_width, "q_proj")
        self.k_proj = linear(a.hidden_size, a.key_value_width, "k_proj")
        self.v_proj = linear(a.hidden_size, a.key_value_width, "v_proj")
        self.o_proj = linear(a.query_width, a.hidden_size, "o_proj")

    def forward(self, x_BSD: Tensor, table: Tensor) -> Tensor:
        """Of as many heads as the projections have here."""
        q, k, v = (
            project(x_BSD).unflatten(-1, (-1, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(self.attend(rotated(q, table), rotated(k, table), v).flatten(2))


def rotated(x_BSFK: Tensor, table: Tensor) -> Tensor:
    """Pairs are (k, k + K/2)."""
    cos, sin = table
    first, second = x_BSFK.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class MLP(nn.Module):
    def __init__(self, a: Architecture, linear: Linear = plain_linear) -> None:
        super().__init__()
        self.gate_proj = linear(a.hidden_size, a.intermediate_size, "gate_proj")
        self.up_proj = linear(a.hidden_size, a.intermediate_size, "up_proj")
        self.down_proj = linear(a.intermediate_size, a.hidden_size, "down_proj")

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))


class Block(nn.Module):
    def __init__(self, a: Architecture, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(a.hidden_size, a.rms_norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = nn.RMSNorm(a.hidden_size, a.rms_norm_eps)
        self.mlp = mlp

    def forward(self, x_BSD: Tensor, table: Tensor) -> Tensor:
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), table)
        return x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))


class Decoder(nn.Module):
    def __init__(self, a: Architecture, attention: Make, mlp: Make) -> None:
        super().__init__()
        self.architecture = a
        self.embed_tokens: nn.Module = nn.Embedding(a.vocab_size, a.hidden_size)
        blocks = [Block(a, attention(), mlp()) for _ in range(a.num_hidden_layers)]
        self.layers = nn.ModuleList(blocks)
        self.norm: nn.Module = nn.RMSNorm(a.hidden_size, a.rms_norm_eps)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        x_BSD = self.embed_tokens(input_ids)
        table = rotary_table(self.architecture, position_ids, x_BSD.dtype)
        for layer in self.layers:
            x_BSD = layer(x_BSD, table)
        return self.norm(x_BSD)


class PlainLM(nn.Module):
    """Token ids and positions to logits; parameters are named as in Hugging Face's Llama, or as
    ours where they are packed."""

    def __init__(self, a: Architecture, attention: Make, mlp: Make) -> None:
        super().__init__()
        self.architecture = a
        self.model = Decoder(a, attention, mlp)
        self.lm_head: nn.Module = nn.Linear(a.hidden_size, a.vocab_size, bias=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return self.lm_head(self.model(input_ids, position_ids))


def plain_model(a: Architecture, attend: Attend = sdpa, linear: Linear = plain_linear) -> PlainLM:
    """One weight each for q, k, v, gate and up."""
    return PlainLM(a, lambda: Attention(a, attend, linear), lambda: MLP(a, linear))


def of_part(model: PlainLM, part: str) -> PlainLM:
    """The model, or its ``blocks``: what is before and after them then passes on what it gets."""
    if part == "blocks":
        model.model.embed_tokens = model.model.norm = model.lm_head = nn.Identity()
    return model


def through_blocks(model: nn.Module, stream: Stream) -> Tensor:
    """Forward and backward of a model that is blocks alone; what comes out of the last one."""
    y = model(stream.x, stream.position_ids)
    y.backward(stream.gradient)
    return y.detach()


def check(run: RunConfig) -> None:
    """Raise ValueError if the plain model is not the run's."""
    a = run.architecture
    for name, given in (
        ("attention_bias", a.attention_bias or a.attention_output_bias),
        ("use_qk_norm", a.use_qk_norm),
        ("tie_word_embeddings", a.tie_word_embeddings),
    ):
        if given:
            raise ValueError(f"model.{name} = true is not in the peers' plain model; valid: false")


def initialized(run: RunConfig, attend: Attend = sdpa, part: str = "model") -> PlainLM:
    """A whole model or its blocks, with the run's weights."""
    return filled(of_part(plain_model(run.architecture, attend), part), run)


def filled(model: PlainLM, run: RunConfig) -> PlainLM:
    """A model that is not cut, now with the run's weights."""
    checkpoint.load_or_initialize(sharding.local_pieces(model, run.architecture, {}, 1, 0), run)
    return model


def mean_loss(logits: Tensor, batch: Batch, tokens: float) -> Tensor:
    """The sum of token losses over the step's tokens."""
    sums = partial(F.cross_entropy, reduction="sum")
    return sums(logits.flatten(0, 1).float(), batch.labels.flatten()) / tokens


Cut = Callable[[str], int | None]
"""cut(name): the dimension that a weight is cut along over the ranks, None if it is whole."""


def cut_block(name: str) -> int | None:
    """The dimension along which tensor parallelism cuts a weight of a block."""
    return sharding.cut_dimension(name, ATTENTION_SPLIT | MLP_SPLIT)


@torch.no_grad()
def spread(model: nn.Module, run: RunConfig, axis: Axis, cut: Cut) -> None:
    """Fill a rank's cut model with the run's weights."""
    whole = dict(initialized(run).named_parameters())

    def mine(part: str) -> Tensor:
        dim = cut(part)
        return whole[part] if dim is None else whole[part].chunk(axis.size, dim)[axis.rank]

    for name, parameter in model.named_parameters():
        parameter.copy_(torch.cat([mine(part) for part in sharding.tensors_of(name)]))


def gathered(model: PlainLM, axis: Axis, cut: Cut) -> Iterator[tuple[str, Tensor]]:
    """Every whole gradient of a cut model, by its Hugging Face name."""
    shapes = sharding.huggingface_shapes(model.architecture)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        parts = sharding.tensors_of(name)
        rows = [shapes[part][0] // (axis.size if cut(part) == 0 else 1) for part in parts]
        for part, gradient in zip(parts, parameter.grad.split(rows), strict=True):
            dim = cut(part)
            if dim is not None:
                of_ranks = [torch.empty_like(gradient) for _ in range(axis.size)]
                dist.all_gather(of_ranks, gradient.contiguous(), group=axis.group)
                gradient = torch.cat(of_ranks, dim=dim)
            yield part, gradient
