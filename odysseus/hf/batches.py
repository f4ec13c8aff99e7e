"""This rank's shard of a batch, and the loss over all shards.

B batch, S tokens of a sample, s tokens of this rank, V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from odysseus.config.sizes import check_multiple, chunks_of
from odysseus.model.documents import Documents
from odysseus.model.loss import IGNORED_LABEL, cross_entropy_sum
from odysseus.parallel import transfers
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.ring_order import shard_of

_KEYS = ("input_ids", "labels", "position_ids", "attention_mask")


@dataclass(frozen=True)
class SplitDocuments(Documents):
    """Documents of whole samples whose tokens are split over the ranks of a mesh.

    Attributes:
        mesh: The mesh that the samples are split over.
    """

    mesh: Mesh


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Cut this rank's shard out of a batch that every rank of its replica holds whole.

    Args:
        batch: ``input_ids`` [B, S] and optionally
            ``labels`` [B, S], not shifted, as Transformers takes them. -100 is ignored. By default
            they are the inputs, except padding and the first token per document.
            ``position_ids`` [B or 1, S]. A document begins wherever they do not increase by 1.
            ``attention_mask`` [B, S]. Its zeros must come last and have no labels.
        mesh: The mesh that this rank belongs to.

    Returns:
        The arguments of ``model(**shard)``: ``input_ids``, ``position_ids`` and ``shift_labels``
        (the label after each input), [B, s] each, and ``documents``.

    Raises:
        ValueError: padding is not at the end, the length does not divide, or a key is unknown.
    """
    if unknown := batch.keys() - {*_KEYS}:
        raise ValueError(f"the batch has {min(unknown)!r}; valid: {', '.join(_KEYS)}")
    input_ids = batch.get("input_ids")
    if input_ids is None or input_ids.dim() != 2 or not input_ids.numel():
        shape = "missing" if input_ids is None else f"of shape {list(input_ids.shape)}"
        raise ValueError(f"the batch's input_ids are {shape}; valid: [samples, tokens]")
    tokens = input_ids.shape[1]
    for name, given in batch.items():
        rows = {input_ids.shape, (1, tokens)} if name == "position_ids" else {input_ids.shape}
        if tuple(given.shape) not in rows:
            raise ValueError(
                f"{name} is {list(given.shape)}; valid: {list(input_ids.shape)}, as input_ids"
            )
    chunks = chunks_of(mesh.ring_order, mesh.ring.size)
    check_multiple(tokens, chunks * mesh.sequence.size, "ranks of a sample (twice, in zigzag)")
    position_ids = batch.get("position_ids")
    if position_ids is None:
        position_ids = torch.arange(tokens, device=input_ids.device)[None]
    position_ids = position_ids.expand(input_ids.shape)
    starts = Documents.from_positions(position_ids.cpu().numpy()).starts
    documents = SplitDocuments(starts, mesh)
    labels, attention_mask = batch.get("labels"), batch.get("attention_mask")
    if labels is None:
        labels = input_ids.clone()
        for row, row_starts in enumerate(starts):
            labels[row, list(row_starts)] = IGNORED_LABEL
        if attention_mask is not None:
            labels[attention_mask == 0] = IGNORED_LABEL
    _check_padding(attention_mask, labels)
    shift_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    sizes = mesh.ring.size, mesh.sequence.size
    local = torch.from_numpy(shard_of(mesh.ring_order, tokens, *sizes, mesh.shard))
    whole = {"input_ids": input_ids, "position_ids": position_ids, "shift_labels": shift_labels}
    shard = {name: x[:, local.to(x.device)].to(mesh.device) for name, x in whole.items()}
    return shard | {"documents": documents}


def _check_padding(attention_mask: Tensor | None, labels: Tensor) -> None:
    """Raise ValueError unless padding is at the end and has no labels.

    Causal attention never sees later tokens, so such padding needs no mask.
    """
    if attention_mask is None:
        return
    if bool((attention_mask.long().diff(dim=1) > 0).any()):
        raise ValueError("attention_mask has zeros before ones; valid: padding at the end")
    if bool((labels[attention_mask == 0] != IGNORED_LABEL).any()):
        raise ValueError(f"padding has labels; valid: {IGNORED_LABEL} where attention_mask is 0")


def count_items(shards: Iterable[Mapping[str, Any]], mesh: Mesh) -> Tensor:
    """Count the labels other than -100 of one optimizer step, on all ranks: a scalar, fp64.

    Raises:
        ValueError: there are none; raised on every rank.
    """
    local = sum((shard["shift_labels"] != IGNORED_LABEL).sum() for shard in shards)
    count = torch.as_tensor(local, dtype=torch.float64, device=mesh.device)
    transfers.all_reduce_plain(count, mesh.world)
    if count == 0:
        raise ValueError(f"all labels of a step are {IGNORED_LABEL}; its loss is undefined")
    return count


def loss(output: Any, labels: Tensor, num_items: Tensor | float) -> Tensor:
    """Return this rank's part of the mean token loss: the sum of its token losses / `num_items`.

    The parts of all ranks add up to the loss. Their gradients add up too, because
    :func:`odysseus.hf.prepare` makes ZeRO-3 sum them. (DDP would average them.)

    Args:
        output: The model's output. Its ``logits`` are [B, s, V] or, with tiled loss, the sum of
            token losses.
        labels: ``shift_labels`` [B, s].
        num_items: Labels other than -100 of the whole step, on all ranks: :func:`count_items`.
    """
    total = sum_of_losses(output, labels)
    return total / torch.as_tensor(num_items, dtype=total.dtype, device=total.device)


def sum_of_losses(output: Any, labels: Tensor) -> Tensor:
    """Return the sum of token losses: the head's own sum if it is tiled, else from the logits."""
    logits = output.logits
    return logits if logits.dim() == 0 else cross_entropy_sum(logits, labels)


class ShardedLoader:
    """A data loader whose batches are sharded; every rank of a replica must read the same ones.

    A ``DistributedSampler(dataset, num_replicas=mesh.replicas, rank=mesh.replica)`` does that.

    Args:
        loader: Yields batches as :func:`shard_batch` takes them.
        mesh: The mesh that this rank belongs to.
    """

    def __init__(self, loader: Iterable[Mapping[str, Any]], mesh: Mesh) -> None:
        self.loader, self.mesh = loader, mesh

    def __len__(self) -> int:
        return len(self.loader)  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield shards; raise ValueError if ranks of a replica have read different batches."""
        for batch in self.loader:
            _check_same(batch, self.mesh)
            yield shard_batch(batch, self.mesh)


def _check_same(batch: Mapping[str, Tensor], mesh: Mesh) -> None:
    digest = 0
    for name in sorted(batch):
        digest = zlib.crc32(f"{name} {batch[name].shape}".encode(), digest)
        digest = zlib.crc32(batch[name].cpu().contiguous().numpy().data, digest)
    most = torch.tensor([digest, -digest], device=mesh.device)
    for axis in (mesh.sequence, mesh.ring):
        dist.all_reduce(most, dist.ReduceOp.MAX, group=axis.group)
    if most[0] != -most[1]:
        raise ValueError(
            "ranks of one replica have read different batches; valid: a DistributedSampler with "
            "num_replicas=mesh.replicas, rank=mesh.replica"
        )
