"""Closed forms of memory: bytes kept for backward, the peak of a step, host memory.

Symbols as in bench/theory/traffic.py; t = T/n tokens of a shard. Activations are those of the
memory meter: without gathered weights or sequences, and without gradients of parameters.
"""

from __future__ import annotations

from itertools import product, starmap

import torch

from bench.theory import expert_memory
from bench.theory.traffic import shard_elements
from methods import method_of
from odysseus.config.groups import Precision
from odysseus.config.pairs import NAMED, Parts
from odysseus.config.run import RunConfig
from odysseus.memory.tiling import tile_count
from odysseus.model.loss import loss_tile_tokens

_WITH_A_FORM = {
    NAMED["tp"],
    *starmap(Parts, product(("tp_sp", "ulysses", "tsp"), ("tp_sp", "zero"))),
}
"""Pairs whose peak has a closed form."""
_OWN_TOKENS = ("ulysses", "tsp")
"""Attentions that project a rank's own tokens, and compute with tokens of all ranks."""


def peak_activation_bytes(run: RunConfig) -> int | None:
    """Return the peak of activations in a step, in bytes; None where no closed form is claimed.

    The peak is in the last block's backward, while the tensors that all other blocks saved are
    alive: at its MLP, at the norm before that, or at its attention. Or it is at the loss.

    The form is claimed for `tp`, and for the attentions `tp_sp`, `ulysses` and `tsp` beside the
    MLPs `tp_sp` and `zero`, in fp32 and fp64, with this project's own kernels and loss, without
    biases and q/k norms. In bf16 it is claimed only without `tp`, tiling and recomputation: with
    them a norm's fp32 work may be the peak. Experts have a form with MLP `zero` in fp32 and fp64,
    without recomputation and shared experts. The form is not claimed for a ring, a tensor axis of
    its own, packed documents, heads that do not divide, tied embeddings, a vocabulary that is cut,
    `ulysses` and `tsp` with queries as wide as the MLP and wider than the stream, or several
    samples in a micro batch whose copies might need more.
    """
    if not _is_claimed(run):
        return None
    at_peak = max(moments(run).values())
    if run.micro_batch_size > 1 and at_peak < _with_copies(run):
        return None
    batch = 8 * (2 * run.local_tokens + run.seq_len // run.shards)
    batch *= run.gradient_accumulation_steps  # all micro steps' are alive
    table_tokens = run.seq_len
    if run.parts.attention in _OWN_TOKENS:
        table_tokens //= run.sequence_size
    table = table_tokens * run.architecture.head_dim * run.compute_dtype.itemsize
    scalars = 3 * 8 + 3 * _wide(run)  # token counts and loss in fp64, the micro step's losses
    if run.architecture.num_experts:
        scalars += expert_memory.sums_bytes(run)
    return at_peak + batch + table + scalars


def least_peak_bytes(run: RunConfig) -> int:
    """Return a lower bound of one rank's peak in bytes, of any depth, without counting anything.

    It is the shards of weights and optimizer states on the device, and the tensors that all blocks
    saved, with those of the last block alone in its backward; gradients, gathered weights, other
    tensors of that backward and rounding come on top. It is 0 for what has no closed form: methods
    from files, pairs without a form, other model code, chunks, packed documents, a tensor axis of
    its own.
    """
    plain = run.model.implementation == "native" and run.model.type == "torch"
    plain = plain and run.ulysses_head_chunks == run.overlap_chunks == 1 and not run.data.pack
    plain = plain and run.tensor_parallel_size == 1
    if not plain or run.parts not in _WITH_A_FORM:
        return 0
    held = max(_inputs(run), _before(run) + _attention_part(run)) + stream_bytes(run)
    if not run.tiled_mlp_compute:
        held = max(held, _before(run) + _attention_part(run) + 3 * mlp_unit_bytes(run))
    shards = 0 if run.parameter_offload == "cpu" else sum(shard_elements(run))
    states = 0 if run.optimizer_on_host else 2 * sum(shard_elements(run))
    return held + shards * run.shard_dtype.itemsize + states * run.master_dtype.itemsize


def moments(run: RunConfig) -> dict[str, int]:
    """Bytes of one rank's activations at each moment of a step that can be its peak, by name.

    The batch, the table of angles and a few scalars are left out: they are alive all the time.
    """
    return {
        "loss": _at_loss(run),
        "MLP": _at_mlp(run),
        "norm": _at_norm(run),
        "attention": _at_attention(run),
    }


def block_saved_bytes(run: RunConfig) -> int:
    """Return the bytes that one block saves in forward for backward, per micro step and rank.

    They are two residual streams; two normed inputs with one scale per row; q, k, v and the
    attention output, with a log-sum-exp per head and row; gate, up and their product, unless the
    MLP is tiled, or what whole experts save, less than cut ones do (Korthikanti et al., arXiv
    2205.05198 table 2, for this block).
    """
    if run.recomputes:
        return stream_bytes(run)
    mlp = 0
    if not run.tiled_mlp_compute:
        has_experts = run.architecture.num_experts > 0
        mlp = expert_memory.saved_bytes(run) if has_experts else 3 * mlp_unit_bytes(run)
    return 4 * stream_bytes(run) + 2 * _scales(run) + _attention_saved(run) + mlp


def stream_bytes(run: RunConfig) -> int:
    """Return the bytes of the stream between blocks on one rank: for `tp` whole, else a shard."""
    width = run.architecture.hidden_size * run.compute_dtype.itemsize
    return _stream_tokens(run) * width


def mlp_unit_bytes(run: RunConfig) -> int:
    """Return the bytes of one rank's [tokens, intermediate] tensor: the whole over n."""
    return run.local_tokens * run.architecture.intermediate_size * run.compute_dtype.itemsize


def host_bytes(run: RunConfig) -> int:
    """Return the bytes of host memory that offloading takes on one rank.

    Checkpoint offload takes the inputs of all blocks but the last (arXiv 2506.13996 §3.3 counts the
    last too). The optimizer takes four tensors of a shard's size (the weights, their gradients and
    AdamW's two moments), and 4 bytes per tensor for AdamW's step count.
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
    biased = a.attention_bias or a.attention_output_bias or a.mlp_bias
    plain = not (a.use_qk_norm or biased or run.compile or a.tie_word_embeddings)
    wide_heads = a.query_width > a.hidden_size and a.query_width >= a.intermediate_size
    plain = plain and run.parts in _WITH_A_FORM
    plain = plain and not (wide_heads and run.parts.attention in _OWN_TOKENS)
    plain = plain and run.ring_parallel_size == 1 and not run.data.pack and run.heads_divide
    plain = plain and not run.vocabulary_cuts and run.tensor_parallel_size == 1
    if a.num_experts:
        plain = plain and run.parts.mlp == "zero" and not a.shared_expert_intermediate_size
        plain = plain and run.dtype != "bf16" and run.micro_batch_size == 1
        plain = plain and not run.tiled_mlp_compute and not run.recomputes
    own = run.model.implementation == "native"
    own = own and run.model.type == "torch" and run.ulysses_all_to_all == "native"
    own = own and run.ulysses_head_chunks == run.overlap_chunks == 1
    own = own and (not run.tiles_loss or run.loss_engine == "fused")
    wide = run.dtype != "bf16"
    tricks = run.recomputes or run.tiled_mlp_compute or run.method == "tp"
    return plain and own and (wide or not tricks)


def _at_loss(run: RunConfig) -> int:
    """Bytes at the loss: saved tensors of all blocks, the last stream, its normed shard, logits.

    Without tiles the logits are log-softmax and two gradients in fp32. With tiles they are one
    tile's logits, overwritten by softmax, and the gradient of the normed shard. The norm's backward
    after the loss may need more.
    """
    a, scales = run.architecture, run.local_tokens * _wide(run)
    shard = run.local_tokens * a.hidden_size * run.compute_dtype.itemsize
    held = _inputs(run) + stream_bytes(run) + scales
    logits = 3 * run.local_tokens * a.vocab_size * _wide(run)
    if run.tiles_loss:
        # Per token a mask, a label, and the picked logit, the total and two of a one. Of the
        # scalars, the loss in fp64 or the last micro step's is made later.
        each = a.vocab_size * _wide(run) + 1 + 8 + 4 * _wide(run)
        later = 8 if run.gradient_accumulation_steps == 1 else _wide(run)
        logits = shard + loss_tile_tokens(run) * each - later
    return held + max(shard + logits, 4 * shard + scales)


def _at_mlp(run: RunConfig) -> int:
    """Bytes in SwiGLU's backward: its input and four tensors of its width, without the product; or
    in that of experts."""
    held = _before(run) + _attention_part(run) + 2 * stream_bytes(run) + _scales(run)
    held += stream_bytes(run)  # the gradient
    if run.architecture.num_experts:
        return held + expert_memory.backward_bytes(run)
    if not run.tiled_mlp_compute:
        return held + 6 * mlp_unit_bytes(run)
    a, width = run.architecture, run.compute_dtype.itemsize
    tokens, batch = _stream_tokens(run) // run.micro_batch_size, run.micro_batch_size
    tiles = tile_count(batch, tokens, a.hidden_size)
    tile = -(-tokens // tiles)
    # The gradient of the whole input, one tile's output, and the down projection's gradient.
    cut = 1 if run.parts.mlp == "zero" else run.sequence_size
    copied = 0  # a tile of several samples, or all ranks' of it, to be contiguous
    if batch > 1:
        copied = run.sequence_size if run.parts.mlp == "tp_sp" else 1
    held += stream_bytes(run) + (1 + copied) * batch * tile * a.hidden_size * width
    if tiles > 1:
        held += a.hidden_size * a.intermediate_size // cut * width
    return held + 6 * mlp_unit_bytes(run) * tile // tokens


def _at_norm(run: RunConfig) -> int:
    """Bytes in backward of the norm before the MLP: two gradients, three tensors of its width."""
    held = _before(run) + _attention_part(run) + stream_bytes(run) + _scales(run)
    return held + 5 * stream_bytes(run) + _scales(run)


def _at_attention(run: RunConfig) -> int:
    """Bytes in attention's backward: gradients of its output and of q, k and v.

    For `ulysses` and `tsp` the peak is already in the recomputed forward: the projection, the
    exchanged tensors, and three times the output.
    """
    attention, output = (
        _attention_part(run),
        _heads_bytes(run, run.architecture.num_attention_heads),
    )
    if run.parts.attention in _OWN_TOKENS and run.sequence_size > 1:
        a = run.architecture
        projected = _heads_bytes(run, a.num_attention_heads + 2 * a.num_key_value_heads)
        gradient = stream_bytes(run) if run.recomputes else 0
        return _before(run) + gradient + attention + projected + output
    return _before(run) + stream_bytes(run) + attention + output + _qkv_bytes(run)


def _with_copies(run: RunConfig) -> int:
    """Bytes that attention needs at most where a micro batch's samples are copied to be contiguous:
    the packed projection, and the gradient of its input over the whole sequence."""
    whole = run.sequence_size * stream_bytes(run)
    return _before(run) + _attention_part(run) + 4 * _qkv_bytes(run) + 2 * whole


def _before(run: RunConfig) -> int:
    """Bytes alive when the last block's backward begins, without that block's saved tensors.

    Offloaded inputs are in host memory, except the last one and the prefetched one.
    """
    layers = run.architecture.num_hidden_layers
    own = stream_bytes(run)
    if run.activation_checkpoint_cpu_offload:
        return own + min(1, layers - 1) * own
    return (layers - 1) * block_saved_bytes(run) + own


def _inputs(run: RunConfig) -> int:
    """Bytes that blocks keep after the last one's forward."""
    if run.activation_checkpoint_cpu_offload:
        return stream_bytes(run)
    return run.architecture.num_hidden_layers * block_saved_bytes(run)


def _attention_part(run: RunConfig) -> int:
    """Bytes that the attention half of a block saves beside its input."""
    return stream_bytes(run) + _scales(run) + _attention_saved(run)


def _attention_saved(run: RunConfig) -> int:
    """Bytes of q, k, v, output and log-sum-exp.

    `ulysses` and `tsp` keep the output twice: by heads for attention, by tokens for the output
    projection.
    """
    output = _heads_bytes(run, run.architecture.num_attention_heads)
    logsumexp = run.local_tokens * run.architecture.num_attention_heads * _wide(run)
    twice = run.parts.attention in _OWN_TOKENS and run.sequence_size > 1
    return _qkv_bytes(run) + output * (1 + twice) + logsumexp


def _qkv_bytes(run: RunConfig) -> int:
    """Bytes of one rank's q, k and v over the whole sequence, with copies of kv heads."""
    a, n = run.architecture, run.sequence_size
    return _heads_bytes(run, a.num_attention_heads + 2 * max(a.num_key_value_heads, n))


def _heads_bytes(run: RunConfig, heads: int) -> int:
    """Bytes of this many heads over a shard of the tokens, or of 1/n of them over all tokens."""
    return run.local_tokens * heads * run.architecture.head_dim * run.compute_dtype.itemsize


def _stream_tokens(run: RunConfig) -> int:
    return run.local_tokens * (run.sequence_size if method_of(run.method).replicated else 1)


def _scales(run: RunConfig) -> int:
    """Bytes of one number per row of the stream, which a norm saves."""
    return _stream_tokens(run) * _wide(run)


def _wide(run: Precision) -> int:
    """Bytes of norms' scales, log-sum-exp and losses: at least fp32."""
    return torch.promote_types(run.compute_dtype, torch.float32).itemsize
