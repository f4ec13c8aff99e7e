"""A Llama of PyTorch's own modules, with Hugging Face's separate weights, for peers to parallelize.

B batch, S tokens, D hidden size, F heads, K elements per head.
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
"""linear(width_in, width_out, name): make the block's linear layer of this name, without bias."""
Make = Callable[[], nn.Module]


def plain_linear(width_in: int, width_out: int, name: str) -> nn.Module:
    """Make PyTorch's linear layer, see :data:`Linear`."""
    return nn.Linear(width_in, width_out, bias=False)


class Attention(nn.Module):
    """Attention with separate weights for q, k and v; the linear layers may be a peer's."""

    def __init__(self, a: Architecture, attend: Attend, linear: Linear = plain_linear) -> None:
        super().__init__()
        self.head_dim, self.attend = a.head_dim, attend
        self.q_proj = linear(a.hidden_size, a.query_width, "q_proj")
        self.k_proj = linear(a.hidden_size, a.key_value_width, "k_proj")
        self.v_proj = linear(a.hidden_size, a.key_value_width, "v_proj")
        self.o_proj = linear(a.query_width, a.hidden_size, "o_proj")

    def forward(self, x_BSD: Tensor, table: Tensor) -> Tensor:
        """Attend with the heads that this rank's projections have: [B, S, D] to [B, S, D]."""
        q, k, v = (
            project(x_BSD).unflatten(-1, (-1, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(self.attend(rotated(q, table), rotated(k, table), v).flatten(2))


def rotated(x_BSFK: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs of elements (k, k + K/2) of every head."""
    cos, sin = table
    first, second = x_BSFK.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class MLP(nn.Module):
    """SwiGLU MLP with separate weights for gate and up; the linear layers may be a peer's."""

    def __init__(self, a: Architecture, linear: Linear = plain_linear) -> None:
        super().__init__()
        self.gate_proj = linear(a.hidden_size, a.intermediate_size, "gate_proj")
        self.up_proj = linear(a.hidden_size, a.intermediate_size, "up_proj")
        self.down_proj = linear(a.intermediate_size, a.hidden_size, "down_proj")

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))


class Block(nn.Module):
    """Transformer block: norm and attention, norm and MLP, each with a residual: [B, S, D]."""

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
    """Embedding, blocks and final norm: token ids and positions [B, S] to [B, S, D]."""

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
    """Language model: token ids and positions to logits.

    Parameters are named as in Hugging Face's Llama; packed ones are named as this project's.
    """

    def __init__(self, a: Architecture, attention: Make, mlp: Make) -> None:
        super().__init__()
        self.architecture = a
        self.model = Decoder(a, attention, mlp)
        self.lm_head: nn.Module = nn.Linear(a.hidden_size, a.vocab_size, bias=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return self.lm_head(self.model(input_ids, position_ids))


def plain_model(a: Architecture, attend: Attend = sdpa, linear: Linear = plain_linear) -> PlainLM:
    """Make the model with separate weights for q, k, v, gate and up."""
    return PlainLM(a, lambda: Attention(a, attend, linear), lambda: MLP(a, linear))


def select_part(model: PlainLM, part: str) -> PlainLM:
    """Return the model; for part ``blocks``, with identities before and after its blocks."""
    if part == "blocks":
        model.model.embed_tokens = model.model.norm = model.lm_head = nn.Identity()
    return model


def run_blocks(model: nn.Module, stream: Stream) -> Tensor:
    """Run forward and backward of a model of blocks alone; return the last block's output."""
    y = model(stream.x, stream.position_ids)
    y.backward(stream.gradient)
    return y.detach()


def check(run: RunConfig) -> None:
    """Raise ValueError if the run's architecture has a feature that the plain model lacks."""
    a = run.architecture
    for name, given in (
        ("attention_bias", a.attention_bias or a.attention_output_bias),
        ("mlp_bias", a.mlp_bias),
        ("use_qk_norm", a.use_qk_norm),
        ("tie_word_embeddings", a.tie_word_embeddings),
    ):
        if given:
            raise ValueError(f"model.{name} = true is not in the peers' plain model; valid: false")
    if a.rope_type != "llama3" and a.rope_factor != 1:
        raise ValueError(
            f"model.rope_type = {a.rope_type} is not in the peers' plain model; valid: llama3"
        )


def initialized(run: RunConfig, attend: Attend = sdpa, part: str = "model") -> PlainLM:
    """Make a whole model, or its blocks, with the run's weights."""
    return load_weights(select_part(plain_model(run.architecture, attend), part), run)


def load_weights(model: PlainLM, run: RunConfig) -> PlainLM:
    """Load the run's weights into a model that is not cut, and return it."""
    checkpoint.load_or_initialize(sharding.local_pieces(model, run.architecture), run)
    return model


def mean_loss(logits: Tensor, batch: Batch, tokens: float) -> Tensor:
    """Return the sum of the token losses, divided by the step's number of tokens."""
    sums = partial(F.cross_entropy, reduction="sum")
    return sums(logits.flatten(0, 1).float(), batch.labels.flatten()) / tokens


Cut = Callable[[str], int | None]
"""cut(name): the dimension along which a weight is cut over the ranks; None if it is whole."""


def cut_block(name: str) -> int | None:
    """Return the dimension along which tensor parallelism cuts a weight; None for a whole one."""
    return sharding.cut_dimension(name, ATTENTION_SPLIT | MLP_SPLIT)


@torch.no_grad()
def load_shards(model: nn.Module, run: RunConfig, axis: Axis, cut: Cut) -> None:
    """Load this rank's shards of the run's weights into its model."""
    whole = dict(initialized(run).named_parameters())

    def own_shard(part: str) -> Tensor:
        dim = cut(part)
        return whole[part] if dim is None else whole[part].chunk(axis.size, dim)[axis.rank]

    for name, parameter in model.named_parameters():
        parameter.copy_(torch.cat([own_shard(part) for part in sharding.tensors_of(name)]))


def gathered_gradients(model: PlainLM, axis: Axis, cut: Cut) -> Iterator[tuple[str, Tensor]]:
    """Yield the gathered gradient of each whole weight, with its Hugging Face name."""
    shapes = sharding.huggingface_shapes(model.architecture)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        parts = sharding.tensors_of(name)
        rows = [shapes[part][0] // (axis.size if cut(part) == 0 else 1) for part in parts]
        for part, gradient in zip(parts, parameter.grad.split(rows), strict=True):
            dim = cut(part)
            if dim is not None:
                shards = [torch.empty_like(gradient) for _ in range(axis.size)]
                dist.all_gather(shards, gradient.contiguous(), group=axis.group)
                gradient = torch.cat(shards, dim=dim)
            yield part, gradient
