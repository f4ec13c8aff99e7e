"""A batch's shard of the sequence, and the loss over all shards.

B batch, S tokens of a sample, s of this rank, V vocabulary.
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

_TAKEN = ("input_ids", "labels", "position_ids", "attention_mask")


@dataclass(frozen=True)
class SplitDocuments(Documents):
    """Documents of samples that the ranks of a mesh share; what attention must be told."""

    mesh: Mesh


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """This rank's shard of a batch that every rank of its replica has whole.

    Args:
        batch: ``input_ids`` [B, S]; and, if they are there, ``labels`` [B, S] as Transformers takes
            them, not shifted (-100 counts nothing; by default the inputs, without padding and
            documents' first ones), ``position_ids`` [B or 1, S] (a document begins wherever they do
            not count on), ``attention_mask`` [B, S], whose zeros must come last and have no labels.
        mesh: This rank's.

    Returns:
        What the model takes, ``model(**shard)``, and the loss: ``input_ids``, ``position_ids`` and
        ``shift_labels`` (the label after each input), [B, s] each, and ``documents``.

    Raises:
        ValueError: padding that is not at the end, a length that does not divide, other keys.
    """
    if unknown := batch.keys() - {*_TAKEN}:
        raise ValueError(f"the batch has {min(unknown)!r}; valid: {', '.join(_TAKEN)}")
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
        for row, of_row in enumerate(starts):
            labels[row, list(of_row)] = IGNORED_LABEL
        if attention_mask is not None:
            labels[attention_mask == 0] = IGNORED_LABEL
    _check_padding(attention_mask, labels)
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
    if bool((attention_mask.long().diff(dim=1) > 0).any()):
        raise ValueError("attention_mask has zeros before ones; valid: padding at the end")
    if bool((labels[attention_mask == 0] != IGNORED_LABEL).any()):
        raise ValueError(f"padding has labels; valid: {IGNORED_LABEL} where attention_mask is 0")


def count_items(shards: Iterable[Mapping[str, Any]], mesh: Mesh) -> Tensor:
    """Labels that count in the batches of one optimizer step, on all ranks: a scalar, fp64.

    Raises:
        ValueError: there are none, on every rank.
    """
    mine = sum((shard["shift_labels"] != IGNORED_LABEL).sum() for shard in shards)
    count = torch.as_tensor(mine, dtype=torch.float64, device=mesh.device)
    transfers.all_reduce_plain(count, mesh.world)
    if count == 0:
        raise ValueError(f"all labels of a step are {IGNORED_LABEL}; its loss is undefined")
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
