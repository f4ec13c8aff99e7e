"""Closed forms of activation memory: what a block keeps for backward, and the most of a step.

Symbols as in bench/theory.py; t = T/n tokens of a shard. Without activation checkpointing.
"""

from __future__ import annotations

import torch

from bench.theory import shard_elements
from odysseus.config import RunConfig


def block_saved_bytes(run: RunConfig) -> int:
    """Bytes that one block of one micro step keeps from forward to backward on one rank.

    Two residual streams and two normed inputs with one scale a row, q, k, v and the attention
    output with a log-sum-exp a head and row, gate and up, and their product (Korthikanti et al.,
    arXiv 2205.05198 table 2, for this block).
    """
    a, n = run.architecture, run.sequence_size
    w, wide = run.compute_dtype.itemsize, _wide(run)
    tokens = run.micro_batch_size * run.seq_len
    stream_tokens = tokens if run.method == "tp" else tokens // n
    streams = 4 * stream_tokens * a.hidden_size * w + 2 * stream_tokens * wide
    heads, keys = a.num_attention_heads // n, max(1, a.num_key_value_heads // n)
    attention = tokens * (2 * heads + 2 * keys) * a.head_dim * w + tokens * heads * wide
    if run.method == "ulysses" and n > 1:
        # The output stays twice: by heads for attention, by tokens for the output projection.
        attention += tokens // n * a.query_width * w
    return streams + attention + 3 * mlp_unit_bytes(run)


def mlp_unit_bytes(run: RunConfig) -> int:
    """Bytes of one rank's [tokens, intermediate] tensor: the whole over n for every method."""
    tokens = run.micro_batch_size * run.seq_len // run.sequence_size
    return tokens * run.architecture.intermediate_size * run.compute_dtype.itemsize


def peak_activation_bytes(run: RunConfig) -> int:
    """The most bytes of activations in a step, when the last block's MLP backward is the moment.

    It is unless logits come out on top (few blocks, a large vocabulary) or, for `tp` in bf16, a
    norm's fp32 work on the replicated stream. All blocks are saved, but for the last MLP's
    product; SwiGLU's backward holds four tensors of its width; one gradient stream, the rotary
    table and the batch come on top.
    """
    a, n = run.architecture, run.sequence_size
    w = run.compute_dtype.itemsize
    tokens = run.micro_batch_size * run.seq_len
    stream = (tokens if run.method == "tp" else tokens // n) * a.hidden_size * w
    table_tokens = run.seq_len // n if run.method == "ulysses" else run.seq_len
    table = table_tokens * a.head_dim * w
    batch = 8 * (2 * tokens // n + run.seq_len // n)
    blocks = a.num_hidden_layers * block_saved_bytes(run)
    scalars = 3 * 8 + 3 * _wide(run)  # token counts and loss in fp64, the micro step's losses
    return blocks + 3 * mlp_unit_bytes(run) + stream + table + batch + scalars


def host_bytes(run: RunConfig) -> int:
    """Host memory that offloading takes on one rank.

    Every block's input but the last one's (arXiv 2506.13996 §3.3 counts that too), and four tensors
    of a shard's size: the weights, their gradients and AdamW's two moments, with AdamW's step
    count of 4 bytes a tensor.
    """
    total = 0
    if run.activation_checkpoint_cpu_offload:
        total += (run.architecture.num_hidden_layers - 1) * stream_bytes(run)
    if run.optimizer_on_host:
        shards = shard_elements(run)
        total += 4 * sum(shards) * run.master_dtype.itemsize + 4 * len(shards)
    return total


def stream_bytes(run: RunConfig) -> int:
    """Bytes of the stream between blocks on one rank: whole for `tp`, a shard for the others."""
    tokens = run.micro_batch_size * run.seq_len
    held = tokens if run.method == "tp" else tokens // run.sequence_size
    return held * run.architecture.hidden_size * run.compute_dtype.itemsize


def _wide(run: RunConfig) -> int:
    """Bytes of norms' scales, log-sum-exp and losses: at least fp32."""
    return torch.promote_types(run.compute_dtype, torch.float32).itemsize
