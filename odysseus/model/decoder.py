"""A Llama-family decoder; with its default arguments, the single-process reference.

A method passes in what it changes: the linear maps of cut weights (`column`, `row`), attention
(`kernels.attend`), and where the stream is gathered and sliced (`edges`). Memory tricks are passed
in too. B batch, S tokens of this rank's stream, D width, H query heads, G kv heads, K elements per
head, W width of packed heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odysseus.config.architecture import Architecture
from odysseus.memory.tiling import tiled
from odysseus.model.attention import split_heads
from odysseus.model.documents import Documents
from odysseus.model.experts import MixtureOfExperts, whole_mlp
from odysseus.model.kernels import TORCH, Kernels
from odysseus.model.layers import (
    Embedding,
    Head,
    Linear,
    Project,
    RMSNorm,
    Vocabulary,
    local,
    unshared,
)
from odysseus.model.mlp import MLP
from odysseus.model.rotary import rotary_table


def identity(x: Tensor) -> Tensor:
    """Return x unchanged."""
    return x


@dataclass(frozen=True)
class Edges:
    """Conversions between this rank's sequence shard and the stream that a method's blocks run on.

    Attributes:
        enter: Converts the shard's embeddings to the first block's input.
        leave: Converts the last block's output to the shard that norm, head and loss see.
        positions: Converts the shard's position ids to those that attention needs.
    """

    enter: Callable[[Tensor], Tensor] = identity
    leave: Callable[[Tensor], Tensor] = identity
    positions: Callable[[Tensor], Tensor] = identity


def saved_as_usual(block: int, x: Tensor) -> AbstractContextManager[object]:
    """Return a context under which autograd keeps a block's input where it is."""
    return nullcontext()


@dataclass(frozen=True)
class Tricks:
    """Memory savings of a block, always applied in this order: tiles, checkpoint, offload.

    Attributes:
        tile_mlp: Compute the MLP in tiles of the sequence.
        tile_after_attention: Compute everything after attention in tiles of the sequence.
        recompute: Save only the block's input, and run the block again in backward.
        overlap_chunks: Chunks of tokens, one's collectives overlapped with another's matmuls.
        saved_input_hooks: Given a block's number and its input, returns the context under which
            autograd saves the input, for example to move it to host memory.
    """

    tile_mlp: bool = False
    tile_after_attention: bool = False
    recompute: bool = False
    overlap_chunks: int = 1
    saved_input_hooks: Callable[[int, Tensor], AbstractContextManager[object]] = saved_as_usual


class Attention(nn.Module):
    """Grouped-query causal attention over `heads` query heads and `kv_heads` kv heads.

    One matmul makes q, k and v: the rows of `qkv_proj` are those of q_proj, k_proj and v_proj.
    """

    def __init__(
        self,
        architecture: Architecture,
        kernels: Kernels,
        *,
        shards: int = 1,
        column: Project = local,
        row: Project = local,
        shared: Callable[[Tensor], Tensor] = unshared,
    ) -> None:
        super().__init__()
        a = architecture
        self.kernels = kernels
        self.heads = a.num_attention_heads // shards
        self.kv_heads = max(1, a.num_key_value_heads // shards)
        self.head_dim = a.head_dim
        width = (self.heads + 2 * self.kv_heads) * a.head_dim
        self.qkv_proj = Linear(a.hidden_size, width, a.attention_bias, column, shared)
        self.o_proj = Linear(self.heads * a.head_dim, a.hidden_size, a.attention_output_bias, row)
        self.q_norm = RMSNorm(a.head_dim, a.rms_norm_eps, kernels) if a.use_qk_norm else None
        self.k_norm = RMSNorm(a.head_dim, a.rms_norm_eps, kernels) if a.use_qk_norm else None

    def attend(
        self, norm: RMSNorm, x_BSD: Tensor, table: Tensor, documents: Documents | None
    ) -> Tensor:
        """Normalise x, project it and attend: [B, S, H·K], before the output projection."""
        return self.attend_projected(self.qkv_proj(norm(x_BSD)), table, documents)

    def attend_projected(
        self, qkv_BSW: Tensor, table: Tensor, documents: Documents | None
    ) -> Tensor:
        """Attend, given projected q, k and v packed in [B, S, (H + 2·G)·K]: [B, S, H·K]."""
        q_BSHK, k_BSGK, v_BSGK = self.split_and_rotate(qkv_BSW, table, self.heads, self.kv_heads)
        return self.kernels.attend(q_BSHK, k_BSGK, v_BSGK, documents=documents).flatten(2)

    def split_and_rotate(
        self, qkv_BSW: Tensor, table: Tensor, heads: int, kv_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Split packed q, k and v, apply the model's q and k norms if any, and rotate q and k.

        Returns:
            q_BSHK, k_BSGK, v_BSGK; those without heads are empty.
        """
        if self.q_norm is None:
            qkv_BSW = self.kernels.rotary_(qkv_BSW, table, heads + kv_heads)
        split = [heads, kv_heads, kv_heads]
        q_BSHK, k_BSGK, v_BSGK = split_heads(qkv_BSW, self.head_dim).split(split, dim=2)
        if self.q_norm is not None and heads:
            q_BSHK = self.kernels.rotary_(self.q_norm(q_BSHK), table, heads)
        if self.k_norm is not None and kv_heads:
            k_BSGK = self.kernels.rotary_(self.k_norm(k_BSGK), table, kv_heads)
        return q_BSHK, k_BSGK, v_BSGK


class Block(nn.Module):
    """One decoder layer: attention and MLP, each with a norm before it and a residual addition."""

    def __init__(
        self,
        architecture: Architecture,
        attention: Attention,
        mlp: MLP | MixtureOfExperts,
        kernels: Kernels,
        tricks: Tricks,
        index: int = 0,
    ) -> None:
        super().__init__()
        self.index = index
        width, eps = architecture.hidden_size, architecture.rms_norm_eps
        self.input_layernorm = RMSNorm(width, eps, kernels)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(width, eps, kernels)
        self.mlp = mlp
        self.tricks = tricks

    def forward(self, x_BSD: Tensor, table: Tensor, documents: Documents | None = None) -> Tensor:
        inputs = x_BSD, table, documents
        if not self.tricks.recompute:
            return self.layer(*inputs)
        with self.tricks.saved_input_hooks(self.index, x_BSD):
            return checkpoint(self.layer, *inputs, use_reentrant=False, preserve_rng_state=False)

    def layer(self, x_BSD: Tensor, table: Tensor, documents: Documents | None) -> Tensor:
        o_BSW = self.self_attn.attend(self.input_layernorm, x_BSD, table, documents)
        if self.tricks.tile_after_attention:
            parts = self.self_attn.o_proj, self.post_attention_layernorm, self.mlp
            parameters = [p for part in parts for p in part.parameters()]
            return tiled(self.after_attention, parameters, x_BSD, o_BSW)
        return self.after_attention(x_BSD, o_BSW)

    def after_attention(self, x_BSD: Tensor, o_BSW: Tensor) -> Tensor:
        x_BSD = x_BSD + self.self_attn.o_proj(o_BSW)
        normed_BSD = self.post_attention_layernorm(x_BSD)
        if self.tricks.tile_mlp:
            return x_BSD + tiled(self.mlp, self.mlp.parameters(), normed_BSD)
        return x_BSD + self.mlp(normed_BSD)


class Decoder(nn.Module):
    """Embedding, blocks and the weight of the last norm, which :class:`CausalLM` applies."""

    def __init__(
        self,
        architecture: Architecture,
        blocks: list[Block],
        kernels: Kernels,
        edges: Edges,
        vocabulary: Vocabulary,
    ) -> None:
        super().__init__()
        self.embed_tokens = Embedding(architecture.hidden_size, vocabulary)
        self.layers = nn.ModuleList(blocks)
        self.norm = RMSNorm(architecture.hidden_size, architecture.rms_norm_eps, kernels)
        self.architecture = architecture
        self.edges = edges

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, documents: Documents | None = None
    ) -> Tensor:
        x_BSD = self.edges.enter(self.embed_tokens(input_ids))
        positions = self.edges.positions(position_ids)
        return self.edges.leave(self.through_blocks(x_BSD, positions, documents))

    def through_blocks(
        self, x_BSD: Tensor, position_ids: Tensor, documents: Documents | None = None
    ) -> Tensor:
        """Run the blocks on a stream [B, S, D], given the position ids that attention needs."""
        table = rotary_table(self.architecture, position_ids, x_BSD.dtype)
        for layer in self.layers:
            x_BSD = layer(x_BSD, table, documents)
        return x_BSD


class CausalLM(nn.Module):
    """The decoder with its head and loss; parameter names nest as in Hugging Face's Llama."""

    def __init__(
        self,
        architecture: Architecture,
        attention: Callable[[], Attention],
        mlp: Callable[[], MLP | MixtureOfExperts],
        kernels: Kernels = TORCH,
        edges: Edges = Edges(),
        tricks: Tricks = Tricks(),
        vocabulary: Vocabulary | None = None,
        block: type[Block] = Block,
    ) -> None:
        super().__init__()
        a = architecture
        vocabulary = vocabulary or Vocabulary(a.vocab_size, a.vocab_size)
        blocks = [
            block(a, attention(), mlp(), kernels, tricks, index)
            for index in range(a.num_hidden_layers)
        ]
        self.model = Decoder(a, blocks, kernels, edges, vocabulary)
        self.lm_head = Head(a.hidden_size, vocabulary)
        self.tie()

    def tie(self) -> None:
        """Give the head the embedding's weight, if the architecture ties them."""
        if self.model.architecture.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        documents: Documents | None = None,
    ) -> Tensor:
        """Return the sum of this rank's token losses.

        Args:
            input_ids: [B, s] int64, s tokens of this rank's shard.
            position_ids: [B or 1, s] int64.
            labels: [B, s] int64, the token after each input; -100 is ignored.
            documents: Documents of the whole sequences, if they are packed.

        Returns:
            A scalar, fp32 (fp64 in an fp64 model).
        """
        hidden = self.model.norm(self.model(input_ids, position_ids, documents))
        return self.lm_head(hidden, labels)


def reference_model(architecture: Architecture) -> CausalLM:
    """Build the whole model for one process, without a method."""
    return CausalLM(
        architecture, lambda: Attention(architecture, TORCH), lambda: whole_mlp(architecture, TORCH)
    )
