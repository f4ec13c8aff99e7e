"""Attention of Transformers' models over a split sequence, under the names ulysses, ring and
ulysses_ring of their ``attn_implementation``.

B batch, s tokens of this rank, H query heads, G kv heads, K elements of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from odysseus.config.nested import ModelOptions
from odysseus.config.run import RunConfig
from odysseus.hf import families
from odysseus.hf.batches import SplitDocuments
from odysseus.model.attention import Attend
from odysseus.model.kernels import choose_kernels
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.ring import choose_ring
from odysseus.parallel.ulysses import all_to_all_attend

# The axes of which each may have more than one rank.
_AXES = {"ulysses": ("sequence",), "ring": ("ring",), "ulysses_ring": ("sequence", "ring")}
NAMES = tuple(_AXES)
# What Transformers hands to attention and attention does not read.
_UNREAD = ("position_ids", "use_cache", "shift_labels", "output_attentions", "cache_position")


def register(
    mesh: Mesh, *, ring_backend: str = "native", attn_implementation: str = "auto"
) -> None:
    """Add ``ulysses``, ``ring`` and ``ulysses_ring`` to Transformers' attention functions.

    Models made with one of these names train on shards of :func:`odysseus.hf.shard_batch`. Other
    names, and so other models, are as before. Called again, another mesh takes the first one's
    place.

    Args:
        mesh: This rank's.
        ring_backend: As ``--ring_backend``: native or allgather.
        attn_implementation: As ``--model.attn_implementation``: the kernel inside.

    Raises:
        ValueError: this device has no such kernel, or none that a ring can use.
    """
    run = RunConfig(
        model=ModelOptions(attn_implementation=attn_implementation),  # pyright: ignore[reportArgumentType]
        ring_backend=ring_backend,  # pyright: ignore[reportArgumentType]
        ring_order=mesh.ring_order,
    )
    if ring_backend not in ("native", "allgather"):
        raise ValueError(f"ring_backend is {ring_backend!r}; valid: native, allgather")

    @lru_cache
    def attend_in(dtype: torch.dtype) -> Attend:
        kernels = choose_kernels(run.model, mesh.device, dtype)
        if mesh.ring.size > 1:
            if kernels.blocks is None:
                raise ValueError(
                    f"attn_implementation = {attn_implementation} gives no log-sum-exp here, which "
                    "a ring needs; valid: auto, sdpa, flash_attention_2"
                )
            kernels = choose_ring(run, mesh.ring, kernels)
        if mesh.sequence.size > 1:
            return all_to_all_attend(kernels.attend, mesh.sequence)
        return kernels.attend

    attend_in(torch.bfloat16)  # says now what it lacks
    sizes = {"sequence": mesh.sequence.size, "ring": mesh.ring.size}
    for name, axes in _AXES.items():
        left_out = [axis for axis, size in sizes.items() if size > 1 and axis not in axes]
        attention: Callable[..., Any] = partial(_attention, mesh, attend_in)
        if left_out:
            attention = partial(_refuse, name, left_out[0], sizes[left_out[0]])
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, _no_mask)


def _refuse(name: str, axis: str, ranks: int, *_: Any, **__: Any) -> None:
    raise ValueError(
        f"attn_implementation = {name}, but the mesh's {axis} axis has {ranks} ranks; valid: "
        "ulysses_ring"
    )


def _no_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """Causal attention within documents needs no mask; padding would."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("attention_mask has zeros; valid: batches of odysseus.hf.shard_batch")


def _attention(
    mesh: Mesh,
    attend_in: Callable[[torch.dtype], Attend],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    documents: SplitDocuments | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """One layer's attention: q [B, H, s, K], k and v [B, G, s, K] to [B, s, H, K].

    Raises:
        ValueError: the layer wants what this attention is not.
    """
    of = type(module).__name__
    families.check(module.config, of)
    if not isinstance(documents, SplitDocuments):
        raise ValueError(
            f"{of} was not told of documents; valid: batches of odysseus.hf.shard_batch, and a "
            "model that hands its keyword arguments on to attention"
        )
    if documents.mesh is not mesh:
        raise ValueError(
            f"{of} has a batch of another mesh than the one registered last; valid: one mesh"
        )
    tokens, width = query.shape[2] * mesh.sequence.size * mesh.ring.size, query.shape[3]
    wanted = {name: given for name, given in others.items() if name not in _UNREAD}
    wanted["dropout"] = dropout or None
    if sliding_window is not None and sliding_window < tokens:
        wanted[f"sliding_window shorter than a sample's {tokens} tokens"] = sliding_window
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    wanted["is_causal"] = None if causal else False
    for name, given in wanted.items():
        if given is not None:
            shown = given if isinstance(given, int | float) else type(given).__name__
            raise ValueError(
                f"{of} wants attention with {name} = {shown}, which is not here for a split "
                "sequence; valid: plain causal attention"
            )
    if attention_mask is not None:
        raise ValueError(f"{of} has an attention mask; valid: batches of odysseus.hf.shard_batch")
    if key.shape[2] != query.shape[2]:
        raise ValueError(
            f"{of} has {query.shape[2]} queries and {key.shape[2]} keys; valid: as many, without "
            "a cache of earlier ones"
        )
    _check_heads(of, query.shape[1], key.shape[1], mesh.sequence.size)
    if (
        mesh.ring.size > 1
        and query.is_cuda
        and (query.dtype != torch.bfloat16 or width % 8 or width > 256)
    ):
        raise ValueError(
            f"{of} has heads of {width} elements in {query.dtype}, which a ring has no kernel for "
            "on CUDA; valid: torch.bfloat16, multiples of 8 up to 256"
        )
    if value.shape[3] != width:
        raise ValueError(f"{of} has values of another width than its queries; valid: the same")
    # Kernels scale by 1/sqrt(K).
    factor = 1.0 if scaling is None else scaling * width**0.5
    query = query if abs(factor - 1) < 1e-9 else query * factor
    q_BsHK, k_BsGK, v_BsGK = (x.transpose(1, 2) for x in (query, key, value))
    within = None if documents.one_per_sequence else documents
    return attend_in(query.dtype)(q_BsHK, k_BsGK, v_BsGK, documents=within), None


def _check_heads(of: str, heads: int, kv_heads: int, ranks: int) -> None:
    if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
        raise ValueError(
            f"{of} has {heads} query and {kv_heads} kv heads, which {ranks} ranks of the sequence "
            "axis cannot share evenly; valid: divisors of the query heads that divide the kv heads "
            "or are multiples of them"
        )
