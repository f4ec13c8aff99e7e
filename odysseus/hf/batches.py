"""A batch's shard of the sequence, and the loss over all shards.

B batch, S tokens of a sample, s of this rank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from odysseus import collectives
from odysseus.documents import Documents
from odysseus.loss import IGNORED_LABEL, cross_entropy_sum
from odysseus.mesh import Mesh
from odysseus.ring_order import shard_of
from odysseus.sizes import check_multiple

_TAKEN = ("input_ids", "labels", "position_ids", "attention_mask")


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """This rank's shard of a batch that every rank of its replica has whole.

    Args:
        batch: ``input_ids`` [B, S]; and, if they are there, ``labels`` [B, S] as Transformers takes
            them, not shifted (-100 counts nothing; by default the inputs, without documents' first
            ones), ``position_ids`` [B or 1, S] (a document begins wherever they do not count on),
            ``attention_mask`` [B, S], whose zeros must come last and have no labels.
        mesh: This rank's.

    Returns:
        What the model takes, ``model(**shard)``, and the loss: ``input_ids``, ``position_ids`` and
        ``shift_labels`` (the label after each input), [B, s] each, and ``documents``.

    Raises:
        ValueError: padding that is not at the end, a length that does not divide, other keys.
    """
    if unknown := batch.keys() - {*_TAKEN}:
        raise ValueError(f"the batch has {min(unknown)!r}; valid: {', '.join(_TAKEN)}")
    input_ids = batch["input_ids"]
    tokens = input_ids.shape[1]
    places = mesh.ring.size * (2 if mesh.ring_order == "zigzag" and mesh.ring.size > 1 else 1)
    check_multiple(tokens, places * mesh.sequence.size, "ranks of a sample (twice, in zigzag)")
    position_ids = batch.get("position_ids")
    if position_ids is None:
        position_ids = torch.arange(tokens, device=input_ids.device)[None]
    position_ids = position_ids.expand(input_ids.shape)
    documents = Documents.of_positions(position_ids.cpu().numpy())
    labels = batch.get("labels")
    if labels is None:
        labels = input_ids.clone()
        for row, starts in enumerate(documents.starts):
            labels[row, list(starts)] = IGNORED_LABEL
    _check_padding(batch.get("attention_mask"), labels)
    shift_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    sizes = mesh.ring.size, mesh.sequence.size
    mine = torch.from_numpy(shard_of(mesh.ring_order, tokens, *sizes, mesh.shard))
    whole = {"input_ids": input_ids, "position_ids": position_ids, "shift_labels": shift_labels}
    shard = {name: x[:, mine.to(x.device)].to(mesh.device) for name, x in whole.items()}
    return shard | {"documents": documents}


def _check_padding(attention_mask: Tensor | None, labels: Tensor) -> None:
    """Causal attention never sees what is after a token, so padding at the end needs no mask."""
    if attention_mask is None:
        return
    if attention_mask.shape != labels.shape:
        shape = list(attention_mask.shape)
        raise ValueError(f"attention_mask is {shape}; valid: {list(labels.shape)}, as input_ids")
    if bool((attention_mask.diff(dim=1) > 0).any()):
        raise ValueError("attention_mask has zeros before ones; valid: padding at the end")
    if bool((labels[attention_mask == 0] != IGNORED_LABEL).any()):
        raise ValueError(f"padding has labels; valid: {IGNORED_LABEL} where attention_mask is 0")


def count_items(shards: Iterable[Mapping[str, Any]], mesh: Mesh) -> Tensor:
    """Labels that count in the batches of one optimizer step, on all ranks: a scalar, fp64."""
    mine = sum((shard["shift_labels"] != IGNORED_LABEL).sum() for shard in shards)
    count = torch.as_tensor(mine, dtype=torch.float64, device=mesh.device)
    collectives.all_reduce_plain(count, mesh.world)
    return count


def loss(output: Any, labels: Tensor, num_items: Tensor | float) -> Tensor:
    """This rank's part of the mean token loss: the sum of its token losses over `num_items`.

    The parts of all ranks add up to the loss, and so do their gradients, as
    :func:`odysseus.hf.prepare` has ZeRO-3 reduce them. (DDP would average them.)

    Args:
        output: The model's, with ``logits`` [B, s, V]; of a model with tiled loss, with the sum.
        labels: ``shift_labels`` [B, s].
        num_items: Labels that count in the whole step, on all ranks: :func:`count_items`.
    """
    total = sum_of_losses(output, labels)
    return total / torch.as_tensor(num_items, dtype=total.dtype, device=total.device)


def sum_of_losses(output: Any, labels: Tensor) -> Tensor:
    """Of a model's output: what its head has summed, or the sum over its logits."""
    logits = output.logits
    return logits if logits.dim() == 0 else cross_entropy_sum(logits, labels)


class ShardedLoader:
    """A data loader whose batches are sharded; every rank of a replica must read the same ones.

    A ``DistributedSampler(dataset, num_replicas=mesh.replicas, rank=mesh.replica)`` sees to that.

    Args:
        loader: Of batches as :func:`shard_batch` takes them.
        mesh: This rank's.
    """

    def __init__(self, loader: Iterable[Mapping[str, Any]], mesh: Mesh) -> None:
        self.loader, self.mesh = loader, mesh

    def __len__(self) -> int:
        return len(self.loader)  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises ValueError where ranks of a replica have read different batches."""
        for batch in self.loader:
            _check_same(batch["input_ids"], self.mesh)
            yield shard_batch(batch, self.mesh)


def _check_same(input_ids: Tensor, mesh: Mesh) -> None:
    flat = input_ids.flatten().cpu().numpy().astype(np.uint64)
    weights = np.arange(1, len(flat) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    digest = int((flat * weights).sum(dtype=np.uint64) >> np.uint64(2))
    most = torch.tensor([digest, -digest], device=mesh.device)
    for axis in (mesh.sequence, mesh.ring):
        dist.all_reduce(most, dist.ReduceOp.MAX, group=axis.group)
    if most[0] != -most[1]:
        raise ValueError(
            "ranks of one replica have read different batches; valid: a DistributedSampler with "
            "num_replicas=mesh.replicas, rank=mesh.replica"
        )
