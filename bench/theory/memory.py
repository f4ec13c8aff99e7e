"""Closed forms of memory: what a block keeps for backward, a step's most, what the host gets.

Symbols as in bench/theory/traffic.py; t = T/n tokens of a shard. Activations are what the meter
counts as such: not gathered weights or sequences, and not what becomes a parameter's gradient.
"""

from __future__ import annotations

import torch

from bench.theory.traffic import shard_elements
from methods import method_of
from odysseus.config.run import RunConfig
from odysseus.memory.tiling import tile_count
from odysseus.method import unchanged
from odysseus.model.loss import loss_tile_tokens


def peak_activation_bytes(run: RunConfig) -> int | None:
    """The most bytes of activations in a step; None where no closed form is claimed.

    The peak is in the last block's backward, when all other blocks' savings are still there: at
    its MLP, at the norm before it, or at its attention; or it is at the loss. Claimed for fp32 and
    fp64 with this project's own kernels and loss, without biases and q/k norms, and in bf16 for
    what is neither `tp` nor tiled nor recomputed (a norm's fp32 work may be the moment there).
    Not claimed for a ring or packed documents.
    """
    if not _is_claimed(run):
        return None
    batch = 8 * (2 * run.local_tokens + run.seq_len // run.shards)
    table_tokens = run.seq_len
    if run.method == "ulysses":
        table_tokens //= run.sequence_size
    table = table_tokens * run.architecture.head_dim * run.compute_dtype.itemsize
    scalars = 3 * 8 + 3 * _wide(run)  # token counts and loss in fp64, the micro step's losses
    return max(moments(run).values()) + batch + table + scalars


def moments(run: RunConfig) -> dict[str, int]:
    """Bytes of a rank's activations at each moment of a step that can be its peak, by name.

    Without the batch, the table of angles and a few scalars, which are there all the time.
    """
    found = {"loss": _at_loss(run), "MLP": _at_mlp(run)}
    if run.recomputes or run.tiled_mlp_compute:
        found |= {"norm": _at_norm(run), "attention": _at_attention(run)}
    return found


def block_saved_bytes(run: RunConfig) -> int:
    """Bytes that one block of one micro step keeps from forward to backward on one rank.

    Two residual streams and two normed inputs with one scale a row, q, k, v and the attention
    output with a log-sum-exp a head and row, gate and up, and their product (Korthikanti et al.,
    arXiv 2205.05198 table 2, for this block); with a tiled MLP, not those three.
    """
    if run.recomputes:
        return stream_bytes(run)
    mlp = 0 if run.tiled_mlp_compute else 3 * mlp_unit_bytes(run)
    return 4 * stream_bytes(run) + 2 * _scales(run) + _attention_saved(run) + mlp


def stream_bytes(run: RunConfig) -> int:
    """Bytes of the stream between blocks on one rank: whole for `tp`, a shard for the others."""
    width = run.architecture.hidden_size * run.compute_dtype.itemsize
    return _stream_tokens(run) * width


def mlp_unit_bytes(run: RunConfig) -> int:
    """Bytes of one rank's [tokens, intermediate] tensor: the whole over n for every method."""
    return run.local_tokens * run.architecture.intermediate_size * run.compute_dtype.itemsize


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


def _is_claimed(run: RunConfig) -> bool:
    a = run.architecture
    plain = not (a.use_qk_norm or a.attention_bias or a.attention_output_bias or run.compile)
    plain = plain and run.ring_parallel_size == 1 and not run.data.pack
    own = run.model.implementation == "native"
    own = own and run.model.type == "torch" and run.ulysses_all_to_all == "native"
    own = own and run.ulysses_head_chunks == run.overlap_chunks == 1
    own = own and (not run.tiles_loss or run.loss_engine == "fused")
    wide = run.dtype != "bf16"
    tricks = run.recomputes or run.tiled_mlp_compute or run.method == "tp"
    return plain and own and (wide or not tricks)


def _at_loss(run: RunConfig) -> int:
    """All blocks' savings, the last stream and its normed shard, and the logits.

    Whole: log-softmax and two gradients in fp32. Tiled: one tile's logits, softmax in their place,
    and the gradient of the normed shard. Or after them the norm's backward.
    """
    a, scales = run.architecture, run.local_tokens * _wide(run)
    shard = run.local_tokens * a.hidden_size * run.compute_dtype.itemsize
    held = _inputs(run) + stream_bytes(run) + scales
    logits = 3 * run.local_tokens * a.vocab_size * _wide(run)
    if run.tiles_loss:
        logits = shard + loss_tile_tokens(run) * a.vocab_size * _wide(run)
    return held + max(shard + logits, 4 * shard + scales)


def _at_mlp(run: RunConfig) -> int:
    """SwiGLU's backward: its input and four tensors of its width (the product is gone)."""
    held = _before(run) + _attention_part(run) + 2 * stream_bytes(run) + _scales(run)
    held += stream_bytes(run)  # the gradient
    if not run.tiled_mlp_compute:
        return held + 6 * mlp_unit_bytes(run)
    a, width = run.architecture, run.compute_dtype.itemsize
    tokens, batch = _stream_tokens(run) // run.micro_batch_size, run.micro_batch_size
    tiles = tile_count(batch, tokens, a.hidden_size)
    tile = -(-tokens // tiles)
    # The gradient of the whole input, a tile's output, and the down projection's gradient.
    held += stream_bytes(run) + batch * tile * a.hidden_size * width
    cut = run.sequence_size if run.method in ("tp", "tp_sp") else 1
    held += a.hidden_size * a.intermediate_size // cut * width
    return held + 6 * mlp_unit_bytes(run) * tile // tokens


def _at_norm(run: RunConfig) -> int:
    """Backward of the norm before the MLP: two gradients, three tensors of its width."""
    held = _before(run) + _attention_part(run) + stream_bytes(run) + _scales(run)
    return held + 5 * stream_bytes(run) + _scales(run)


def _at_attention(run: RunConfig) -> int:
    """The attention's backward: gradients of its output and of q, k and v. For `ulysses` already
    its forward in the recomputation: the projection, what was exchanged, and the output thrice."""
    attention, output = (
        _attention_part(run),
        _heads_bytes(run, run.architecture.num_attention_heads),
    )
    if run.method == "ulysses" and run.sequence_size > 1:
        a = run.architecture
        projected = _heads_bytes(run, a.num_attention_heads + 2 * a.num_key_value_heads)
        gradient = stream_bytes(run) if run.recomputes else 0
        return _before(run) + gradient + attention + projected + output
    return _before(run) + stream_bytes(run) + attention + output + _qkv_bytes(run)


def _before(run: RunConfig) -> int:
    """What is there of all blocks when the last one's backward begins, but for its own insides.

    Offloaded inputs are in host memory, but for the last and the one that is fetched ahead.
    """
    layers = run.architecture.num_hidden_layers
    own = stream_bytes(run)
    if run.activation_checkpoint_cpu_offload:
        return own + min(1, layers - 1) * own
    return (layers - 1) * block_saved_bytes(run) + own


def _inputs(run: RunConfig) -> int:
    """What blocks keep when the last one's forward is over."""
    if run.activation_checkpoint_cpu_offload:
        return stream_bytes(run)
    return run.architecture.num_hidden_layers * block_saved_bytes(run)


def _attention_part(run: RunConfig) -> int:
    """What the attention half of a block keeps beside its input."""
    return stream_bytes(run) + _scales(run) + _attention_saved(run)


def _attention_saved(run: RunConfig) -> int:
    """q, k, v, output, log-sum-exp. In `ulysses` the output stays twice: by heads for attention, by
    tokens for the output projection."""
    output = _heads_bytes(run, run.architecture.num_attention_heads)
    logsumexp = run.local_tokens * run.architecture.num_attention_heads * _wide(run)
    twice = run.method == "ulysses" and run.sequence_size > 1
    return _qkv_bytes(run) + output * (1 + twice) + logsumexp


def _qkv_bytes(run: RunConfig) -> int:
    """q, k and v of one rank's heads over the whole sequence, kv heads' copies counted."""
    a, n = run.architecture, run.sequence_size
    return _heads_bytes(run, a.num_attention_heads + 2 * max(a.num_key_value_heads, n))


def _heads_bytes(run: RunConfig, heads: int) -> int:
    """So many heads over a shard of the tokens: the same bytes as 1/n of them over all."""
    return run.local_tokens * heads * run.architecture.head_dim * run.compute_dtype.itemsize


def _stream_tokens(run: RunConfig) -> int:
    is_whole = method_of(run.method).enter is not unchanged
    return run.local_tokens * (run.sequence_size if is_whole else 1)


def _scales(run: RunConfig) -> int:
    """One number a row of the stream, kept by a norm."""
    return _stream_tokens(run) * _wide(run)


def _wide(run: RunConfig) -> int:
    """Bytes of norms' scales, log-sum-exp and losses: at least fp32."""
    return torch.promote_types(run.compute_dtype, torch.float32).itemsize
