"""Attention of Transformers' models over a split sequence.

A model chooses it by its ``attn_implementation``: ulysses, ring or ulysses_ring.
B batch, s tokens of this rank, H query heads, G kv heads, K elements per head.
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
from odysseus.config.sizes import shares
from odysseus.hf import attention_call, families
from odysseus.hf.attention_call import AttentionCall
from odysseus.hf.batches import SplitDocuments
from odysseus.model.attention import with_sinks
from odysseus.model.kernels import Kernels, choose_kernels, within_window
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.ring import choose_ring
from odysseus.parallel.ulysses import all_to_all_attend

# The axes that may have more than one rank, per name.
_AXES = {"ulysses": ("sequence",), "ring": ("ring",), "ulysses_ring": ("sequence", "ring")}
NAMES = tuple(_AXES)
# Arguments that Transformers passes to attention and that do not change its result.
_IGNORED = (
    *("position_ids", "use_cache", "shift_labels", "cache_position"),
    *("output_attentions", "output_router_logits"),
)


def register(
    mesh: Mesh, *, ring_backend: str = "native", attn_implementation: str = "auto"
) -> None:
    """Add ``ulysses``, ``ring`` and ``ulysses_ring`` to Transformers' attention functions.

    Models made with one of these names train on shards of :func:`odysseus.hf.shard_batch`. Other
    names, and models that use them, do not change. Calling it again replaces the mesh.

    Args:
        mesh: The mesh that this rank belongs to.
        ring_backend: native or allgather, as for ``--ring_backend``.
        attn_implementation: The kernel inside, as for ``--model.attn_implementation``.

    Raises:
        ValueError: this device has no kernel of that name.
    """
    run = RunConfig(
        model=ModelOptions(attn_implementation=attn_implementation),  # pyrefly: ignore
        ring_backend=ring_backend,  # pyrefly: ignore
        ring_order=mesh.ring_order,
    )
    if ring_backend not in ("native", "allgather"):
        raise ValueError(f"ring_backend is {ring_backend!r}; valid: native, allgather")

    @lru_cache
    def kernels_in(dtype: torch.dtype, width: int, window: int | None) -> Kernels:
        kernels = choose_kernels(run.model, mesh.device, dtype, width)
        if window is not None:
            kernels = within_window(kernels, window)
        return choose_ring(run, mesh.ring, kernels) if mesh.ring.size > 1 else kernels

    kernels_in(torch.bfloat16, 128, None)  # raises now if a kernel is missing
    sizes = {"sequence": mesh.sequence.size, "ring": mesh.ring.size}
    for name, axes in _AXES.items():
        uncovered = [axis for axis, size in sizes.items() if size > 1 and axis not in axes]
        attention: Callable[..., Any] = partial(_attention, mesh, kernels_in)
        if uncovered:
            attention = partial(_refuse, name, uncovered[0], sizes[uncovered[0]])
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, _no_mask)


def _refuse(name: str, axis: str, ranks: int, *_: Any, **__: Any) -> None:
    raise ValueError(
        f"attn_implementation = {name}, but the mesh's {axis} axis has {ranks} ranks; valid: "
        "ulysses_ring"
    )


def _no_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """Return no mask: causal attention within documents needs none.

    Raises:
        ValueError: the batch has padding, which would need a mask.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("attention_mask has zeros; valid: batches of odysseus.hf.shard_batch")


def _attention(
    mesh: Mesh,
    kernels_in: Callable[[torch.dtype, int, int | None], Kernels],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    documents: Any = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute one layer's attention: q [B, H, s, K], k and v [B, G, s, K] to [B, s, H, K].

    `s_aux`, [H], are attention sinks.

    Raises:
        ValueError: this attention cannot compute what the layer asks for.
    """
    extras = {name: given for name, given in others.items() if name not in _IGNORED}
    extras["dropout"] = dropout or None
    tokens = query.shape[2] * mesh.sequence.size * mesh.ring.size
    window = None if sliding_window is None or sliding_window >= tokens else sliding_window
    batch = "plain"
    if isinstance(documents, SplitDocuments):
        batch = "split" if documents.mesh is mesh else "other mesh"
    attention_call.check(
        AttentionCall(
            layer=type(module).__name__,
            model_type=module.config.model_type,
            rope_type=families.rope_type(module.config),
            longest_is_used=getattr(documents, "longest_is_used", False),
            batch=batch,
            query=query.shape,
            key=key.shape,
            value=value.shape,
            dtype=query.dtype,
            on_cuda=query.is_cuda,
            masked=attention_mask is not None,
            causal=bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
            window=window,
            sinks=None if s_aux is None else s_aux.shape,
            extras=tuple((k, _shown(v)) for k, v in extras.items() if v is not None),
            sequence_size=mesh.sequence.size,
            ring_size=mesh.ring.size,
        )
    )
    # Kernels scale by 1/sqrt(K).
    factor = 1.0 if scaling is None else scaling * query.shape[3] ** 0.5
    query = query if abs(factor - 1) < 1e-9 else query * factor
    q_BsHK, k_BsGK, v_BsGK = (x.transpose(1, 2) for x in (query, key, value))
    packed = None if documents.one_per_sequence else documents
    axis = mesh.sequence
    kernels = kernels_in(query.dtype, query.shape[3], window)
    attend = kernels.attend
    if s_aux is not None:
        assert kernels.attention_with_lse is not None, "of a device"
        heads, _ = shares(query.shape[1], key.shape[1], axis.size)[axis.rank]
        attend = with_sinks(kernels.attention_with_lse, s_aux[heads.start : heads.stop])
    if axis.size > 1:
        attend = all_to_all_attend(attend, axis)
    return attend(q_BsHK, k_BsGK, v_BsGK, documents=packed), None


def _shown(value: Any) -> float | str:
    """Return a number itself, and the name of any other value's type."""
    return value if isinstance(value, int | float) else type(value).__name__
