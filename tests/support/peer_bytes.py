"""Bytes that peers send in a step of one small run, in closed form."""

from __future__ import annotations

import math

from odysseus.config.run import ModelOptions, RunConfig
from odysseus.parallel.sharding import huggingface_shapes

MODEL = ModelOptions(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_key_value_heads=4, vocab_size=256
)
RUN = RunConfig(model=MODEL, seq_len=128, micro_batch_size=2, tiled_loss_bytes=2**15)
TOKENS = 2 * 128
STREAM, LOGITS = 4 * TOKENS * 32, 4 * TOKENS * 256


def bytes_of_dtensor_tp(ranks: int) -> int:
    """DTensor's tensor parallelism all-reduces the stream after the embedding and twice per block.
    In backward it does so once for every column-parallel layer: q, k, v, gate, up, the head. It
    gathers the logits. An all-reduce sends 2(n-1)/n of its tensor, a gather half of that."""
    return (2 * STREAM * (1 + 2 * 2 + 1 + 2 * 5) + LOGITS) * (ranks - 1) // ranks


def bytes_of_megatron_tp(ranks: int) -> int:
    """Megatron-Core's tensor parallelism, with packed layers, all-reduces the stream after the
    embedding and twice per block. In backward it does so twice per block and once for the head.
    Its loss sums three numbers per token."""
    return 2 * (STREAM * (1 + 2 * 2 + 2 * 2 + 1) + 3 * 4 * TOKENS) * (ranks - 1) // ranks


def bytes_of_torchtitan_tp_sp(ranks: int) -> int:
    """torchtitan's TP-SP gathers or scatters the stream after the embedding, four times per block
    and before the head, and again in backward. Its loss sums three numbers per token. The
    gradients of the five norms are summed."""
    moved = STREAM * 2 * (1 + 2 * 4 + 1) + 2 * 4 * (3 * TOKENS + 5 * 32)
    return moved * (ranks - 1) // ranks


def bytes_of_deepspeed_ulysses(ranks: int) -> int:
    """DeepSpeed's Ulysses exchanges q, k, v and o of both blocks, and their gradients. Its ZeRO-3
    keeps weights gathered from forward to backward, and sums three numbers to check that all is
    finite."""
    shapes = huggingface_shapes(RUN.architecture)
    heads = RUN.architecture.query_width + RUN.architecture.key_value_width
    exchanged = 2 * 2 * 2 * heads * TOKENS // ranks
    weights = sum(math.prod(shape) for shape in shapes.values())
    return 4 * (exchanged + 2 * weights + 2 * 3) * (ranks - 1) // ranks


def bytes_of_deepspeed_alst(ranks: int) -> int:
    """ALST also gathers the position ids of one sample in both blocks."""
    return bytes_of_deepspeed_ulysses(ranks) + 2 * 8 * 128 * (ranks - 1) // ranks


def bytes_of_torch_context_parallel(ranks: int) -> int:
    """PyTorch's ring gathers keys and values in both directions and sends their fp32 gradients
    around the whole ring. FSDP2 gathers weights and reduces gradients; it gathers blocks again
    in backward."""
    shapes = huggingface_shapes(RUN.architecture)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    blocks = sum(size for name, size in sizes.items() if ".layers." in name)
    weights = 2 * sum(sizes.values()) + blocks
    keys_and_values = 2 * 2 * RUN.architecture.key_value_width * TOKENS
    loss_elements = 2
    gathered = weights + 2 * keys_and_values + loss_elements
    return 4 * gathered * (ranks - 1) // ranks + 4 * keys_and_values


def bytes_of_yunchang_ring(ranks: int, part: str) -> int:
    """yunchang's ring sends keys and values in forward and again in backward, and their fp32
    gradients around the whole ring. FSDP2 gathers weights in bf16 and reduces gradients in fp32."""
    shapes = huggingface_shapes(RUN.architecture)
    blocks = sum(math.prod(shape) for name, shape in shapes.items() if ".layers." in name)
    weights = sum(map(math.prod, shapes.values())) if part == "model" else blocks
    keys_and_values = 2 * 2 * RUN.architecture.key_value_width * TOKENS // ranks
    rings = keys_and_values * (2 * 2 * (ranks - 1) + 4 * ranks)
    loss_bytes = 2 * 4 * (part == "model")
    return rings + (2 * (weights + blocks) + 4 * weights + loss_bytes) * (ranks - 1) // ranks


def bytes_of_blocks(ranks: int) -> dict[str, int]:
    """Bytes that each peer sends for blocks alone, forward and backward.

    Tensor parallelism all-reduces the stream twice per block and once for every input's gradient.
    Between shards it gathers and scatters instead, and also sums the norms' gradients. The others
    send q, k, v and o, or keys and values, and weights: FSDP2 three times, DeepSpeed's ZeRO-3
    twice and two numbers more. ALST also sends position ids.
    """
    a, shapes = RUN.architecture, huggingface_shapes(RUN.architecture)
    weights = 4 * sum(math.prod(shape) for name, shape in shapes.items() if ".layers." in name)
    exchanged = 4 * 2 * 2 * 2 * (a.query_width + a.key_value_width) * TOKENS // ranks
    gathered = 4 * 2 * 2 * a.key_value_width * TOKENS
    norms = 2 * 4 * 4 * 32
    zero = exchanged + 2 * weights + 2 * 2 * 4
    whole = {
        "dtensor_tp": 2 * STREAM * 2 * (2 + 5),
        "fairscale_tp": 2 * STREAM * 2 * (2 + 5),
        "megatron_tp": 2 * STREAM * 2 * (2 + 2),
        "megatron_tp_sp": STREAM * 2 * 10 + norms,
        **dict.fromkeys(
            ("dtensor_tp_sp", "dtensor_tp_sp_loss", "torchtitan_tp_sp"), STREAM * 2 * 8 + norms
        ),
        "yunchang_ulysses": exchanged + 3 * weights,
        "torch_context_parallel": 3 * weights + 2 * gathered,
        "deepspeed_ulysses": zero,
        "deepspeed_alst": zero + 2 * 8 * TOKENS // 2,
    }
    sent = {name: size * (ranks - 1) // ranks for name, size in whole.items()}
    sent["torch_context_parallel"] += gathered
    return sent


BYTES = {
    "dtensor_tp": bytes_of_dtensor_tp,
    "megatron_tp": bytes_of_megatron_tp,
    "torchtitan_tp_sp": bytes_of_torchtitan_tp_sp,
    "torch_context_parallel": bytes_of_torch_context_parallel,
    "deepspeed_ulysses": bytes_of_deepspeed_ulysses,
    "deepspeed_alst": bytes_of_deepspeed_alst,
}
"""Bytes per rank and step of the whole model in fp32, as functions of the number of ranks."""
