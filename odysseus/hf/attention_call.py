"""The checks of one attention call of a Transformers model, made once per kind of call.

A model's layers repeat the same call in every forward, so calls that were accepted are remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from odysseus.hf import families


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """Everything that decides whether attention over a split sequence can compute a call.

    Attributes:
        layer: Class of the attention module, for messages.
        model_type: Family of the model.
        rope_type: Kind of its rotary embedding.
        longest_is_used: Whether the rotary embedding was told the batch's largest position.
        batch: "split" for documents of :func:`odysseus.hf.shard_batch`; "other mesh" if they are of
            another mesh than the registered one; "plain" for all other batches.
        query: Shape [B, H, s, K].
        key: Shape [B, G, s, K].
        value: Shape [B, G, s, K].
        dtype: Of the query.
        on_cuda: Whether the query is on a GPU.
        masked: Whether an attention mask is given.
        causal: Whether attention is causal.
        window: Tokens that a query sees, its own included, if fewer than a sample's.
        sinks: Shape of the attention sinks, if there are any.
        extras: Names and values of other arguments that would change the result.
        sequence_size: Ranks of the sequence axis.
        ring_size: Ranks of the ring axis.
    """

    layer: str
    model_type: str
    rope_type: str
    longest_is_used: bool
    batch: str
    query: torch.Size
    key: torch.Size
    value: torch.Size
    dtype: torch.dtype
    on_cuda: bool
    masked: bool
    causal: bool
    window: int | None
    sinks: torch.Size | None
    extras: tuple[tuple[str, float | str], ...]
    sequence_size: int
    ring_size: int


@lru_cache(maxsize=256)
def check(call: AttentionCall) -> None:
    """Raise ValueError if attention over a split sequence cannot compute a call.

    Accepted calls are cached; a refused call raises every time.
    """
    families.check_family(call.model_type, call.layer)
    if call.batch == "plain":
        raise ValueError(
            f"{call.layer} was given no documents; valid: batches of odysseus.hf.shard_batch, and "
            "a model that passes its keyword arguments on to attention"
        )
    if call.batch == "other mesh":
        raise ValueError(
            f"{call.layer} has a batch of another mesh than the one registered last; valid: one "
            "mesh"
        )
    if call.rope_type in families.BY_LENGTH and not call.longest_is_used:
        raise ValueError(
            f"{call.layer} has rope_type {call.rope_type}, whose frequencies depend on the whole "
            "sample's positions; valid: a model that odysseus.hf.prepare has changed"
        )
    _check_causal(call)
    if call.masked:
        raise ValueError(
            f"{call.layer} has an attention mask; valid: batches of odysseus.hf.shard_batch"
        )
    if call.key[2] != call.query[2]:
        raise ValueError(
            f"{call.layer} has {call.query[2]} queries and {call.key[2]} keys; valid: as many, "
            "without a cache of earlier ones"
        )
    _check_heads(call)


def _check_causal(call: AttentionCall) -> None:
    unsupported = list(call.extras)
    if call.window is not None and call.window < 1:
        unsupported.append(("sliding_window", call.window))
    if not call.causal:
        unsupported.append(("is_causal", False))
    for name, value in unsupported:
        raise ValueError(
            f"{call.layer} wants attention with {name} = {value}, which is not supported on a "
            "split sequence; valid: causal attention, with a sliding window or sinks"
        )


def _check_heads(call: AttentionCall) -> None:
    heads, width, ranks = call.query[1], call.query[3], call.sequence_size
    if heads < ranks:
        raise ValueError(
            f"{call.layer} has {heads} query heads, which {ranks} ranks of the sequence axis "
            "cannot share; valid: at most as many ranks as query heads"
        )
    has_kernel = call.dtype == torch.bfloat16 and width % 8 == 0 and width <= 256
    needs_kernel = call.ring_size > 1 or call.window is not None or call.sinks is not None
    if needs_kernel and call.on_cuda and not has_kernel:
        raise ValueError(
            f"{call.layer} has heads of {width} elements in {call.dtype}, for which rings, windows "
            "and sinks have no kernel on CUDA; valid: torch.bfloat16, multiples of 8 up to 256"
        )
    if call.sinks is not None and call.sinks != (heads,):
        raise ValueError(
            f"{call.layer} has sinks of shape {list(call.sinks)}; valid: [{heads}], one per head"
        )
    if call.value[3] != width:
        raise ValueError(
            f"{call.layer} has values of another width than its queries; valid: the same"
        )
