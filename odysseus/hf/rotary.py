"""Rotary embeddings whose frequencies depend on the longest position of the whole batch.

Transformers reads it off the positions that it is given, here a shard's. So they get one more.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from odysseus.hf import families
from odysseus.hf.batches import SplitDocuments
from odysseus.hf.changes import Changes
from odysseus.model.varlen import Packing


def use_longest(model: nn.Module, changes: Changes) -> None:
    """Make a model's rotary embeddings compute frequencies for the longest position of all shards.

    The frequencies of one batch, as Transformers has it, so replicas may have different ones.
    """
    rotary = [m for m in model.modules() if getattr(m, "rope_type", None) in families.BY_LENGTH]
    if not rotary:
        return
    longest: list[int] = []

    def store_longest(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        documents = kwargs.get("documents")
        if not isinstance(documents, SplitDocuments):
            longest.clear()
            return None
        longest[:] = [documents.longest]
        with_longest = replace(documents, longest_is_used=True)
        Packing.share(documents, with_longest)
        return args, kwargs | {"documents": with_longest}

    changes.undos.append(model.register_forward_pre_hook(store_longest, with_kwargs=True).remove)
    for module in rotary:
        changes.set(module, "forward", partial(_with_longest, longest, module.forward))


def _with_longest(
    longest: list[int], forward: Any, x: Tensor, position_ids: Tensor
) -> tuple[Tensor, Tensor]:
    tokens = position_ids.shape[1]
    if longest:
        last = position_ids.new_full((len(position_ids), 1), longest[0] - 1)
        # Padding may have larger positions.
        position_ids = torch.cat([position_ids.clamp(max=longest[0] - 1), last], 1)
    cos, sin = forward(x, position_ids)
    return cos[:, :tokens], sin[:, :tokens]
