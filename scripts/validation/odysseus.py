"""Measure what the Odysseus repository keeps for backward, for docs/validation.md.

Llama2-7B without checkpointing, 32K tokens on 8 ranks, on tensors without values: Transformers'
modules, with the tensors that the TP-SP attention and MLP of that repository save
(feifeibear/Odysseus-Transformer, April 2024). Linear maps keep only their shard of the gathered
input. q, k and v are sliced out of one packed projection, gate and up are chunks of another. Every
layer makes its own cos and sin; logits are in fp32. Odysseus's MLP computes on the rank's own
tokens, with gathered weights.

python -m scripts.validation.odysseus    a few seconds
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from bench.meters.memory import MemoryMeter
from bench.simulator.cuda_kernels import kernels
from bench.simulator.fake_world import META

RANKS, TOKENS, WIDTH, INNER, HEADS, VOCABULARY, LAYERS = 8, 32768, 4096, 11008, 32, 32000, 32
PARAMETERS, GIB = 6_738_415_616, 2**30
UNCUT = (2 * VOCABULARY + 2 * LAYERS + 1) * WIDTH
"""Parameters of embedding, head and norms: FSDP's root unit, whole from forward to backward."""
CONFIG = LlamaConfig(
    hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
    num_attention_heads=HEADS, vocab_size=VOCABULARY, max_position_embeddings=TOKENS,
)  # fmt: skip


class Gathered(torch.autograd.Function):
    """A linear map of the gathered sequence, in one buffer for all: it keeps its input's shard."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.new_empty(1, x.shape[1] * RANKS, weight.shape[0])


class Scattered(torch.autograd.Function):
    """Reduce-scatter after a row-parallel linear map; it keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_empty(1, x.shape[1] // RANKS, x.shape[2])


class GatheredWeight(torch.autograd.Function):
    """A linear map of the rank's own tokens: it keeps these and its shard of the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.new_empty(1, x.shape[1], weight.shape[0] * RANKS)


class Block(nn.Module):
    """Block of that repository's TP-SP, with the same MLP or Odysseus's."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method
        self.norms = nn.ModuleList(LlamaRMSNorm(WIDTH) for _ in range(2))
        self.rotary = LlamaRotaryEmbedding(CONFIG)
        self.qkv = nn.Parameter(torch.empty(3 * WIDTH // RANKS, WIDTH))
        self.o = nn.Parameter(torch.empty(WIDTH, WIDTH // RANKS))
        self.gate_up = nn.Parameter(torch.empty(2 * INNER // RANKS, WIDTH))
        of_down = (WIDTH, INNER // RANKS) if method == "TP-SP" else (WIDTH // RANKS, INNER)
        self.down = nn.Parameter(torch.empty(of_down))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        qkv = Gathered.apply(self.norms[0](x), self.qkv).unflatten(2, (-1, WIDTH // HEADS))
        q, k, v = (part.transpose(1, 2) for part in qkv.split(HEADS // RANKS, dim=2))
        q, k = apply_rotary_pos_emb(q, k, *self.rotary(v, positions))
        attend = kernels("flash_attention_2").attend
        o = attend(*(part.transpose(1, 2) for part in (q, k, v)))
        x = x + Scattered.apply(F.linear(o.flatten(2), self.o))
        return x + self.mlp(self.norms[1](x))

    def mlp(self, x: Tensor) -> Tensor:
        if self.method == "TP-SP":
            gate, up = Gathered.apply(x, self.gate_up).chunk(2, dim=-1)
            return Scattered.apply(F.linear(F.silu(gate) * up, self.down))
        gate, up = (GatheredWeight.apply(x, weight) for weight in self.gate_up.chunk(2))
        return GatheredWeight.apply(F.silu(gate) * up, self.down)


def held(method: str) -> dict[str, int]:
    """Bytes held between forward and backward, by kind."""
    with META:
        blocks = nn.ModuleList(Block(method) for _ in range(LAYERS)).to(torch.bfloat16)
        norm = LlamaRMSNorm(WIDTH).to(torch.bfloat16)
        table, head = (torch.empty(VOCABULARY, WIDTH, dtype=torch.bfloat16) for _ in range(2))
        ids, positions = (torch.arange(n)[None] for n in (TOKENS // RANKS, TOKENS))
    for tensor in (table, head):
        tensor.requires_grad_()
    meter = MemoryMeter(512)
    with meter:
        meter.watch([*blocks.parameters(), *norm.parameters(), table, head], "parameters")
        x = F.embedding(ids, table)
        for block in blocks:
            x = block(x, positions)
        logits = F.linear(norm(x), head).float()
        del x
        activations = meter.before_backward()["activations"]
    del logits
    return {
        "activations": activations,
        "gather buffer": TOKENS * WIDTH * 2,
        "weights and moments": 6 * PARAMETERS // RANKS,
        "root unit, whole": 2 * UNCUT * (RANKS - 1) // RANKS,
    }


def main() -> None:
    for method in ("TP-SP", "Odysseus"):
        parts = held(method)
        print(f"{method}: {sum(parts.values()) / GIB:.2f} GiB")
        for name, size in parts.items():
            print(f"  {name}: {size / GIB:.2f} GiB")


if __name__ == "__main__":
    main()
