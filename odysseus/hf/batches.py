"""This rank's shard of a batch, and the loss over all shards.

B batch, S tokens of a sample, s tokens of this rank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odysseus.config.sizes import check_multiple, chunks_of
from odysseus.model.documents import Documents
from odysseus.model.loss import IGNORED_LABEL, cross_entropy_sum
from odysseus.model.varlen import Packing
from odysseus.parallel import transfers
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.ring_order import shard_of

_KEYS = ("input_ids", "labels", "position_ids", "attention_mask")


@dataclass(frozen=True)
class SplitDocuments(Documents):
    """Documents of whole samples whose tokens are split over the ranks of a mesh.

    Attributes:
        mesh: The mesh that the samples are split over.
        longest: The largest position of the batch but for padding, plus 1; 0 if it is not needed.
        padding: Whether a token of this rank is padding, [B, s]; None without an attention mask.
        longest_is_used: Whether the model's rotary embedding was told the largest position.
    """

    mesh: Mesh
    longest: int = 0
    padding: Tensor | None = field(default=None, compare=False)
    longest_is_used: bool = False


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Cut this rank's shard out of a batch that every rank of its replica holds whole.

    Args:
        batch: Whole numbers, as tensors, arrays or lists: ``input_ids`` [B, S] and optionally
            ``labels`` [B, S], not shifted, as Transformers takes them. -100 is ignored. By default
            they are the inputs, except padding and the first token per document.
            ``position_ids`` [B or 1, S]. They increase by 1 inside a document and begin again at 0
            in the next one. A sample may begin inside a document. Those of padding may be anything.
            ``attention_mask`` [B, S], of ones and zeros. Zeros must come last and have no labels.
        mesh: The mesh that this rank belongs to.

    Returns:
        The arguments of ``model(**shard)``: ``input_ids``, ``position_ids`` and ``shift_labels``
        (the label after each input), [B, s] each, and ``documents``.

    Raises:
        ValueError: padding is not at the end, the length does not divide, positions jump inside a
            document, or a key, a type or a shape is not one of these.
    """
    given = batch_tensors(batch)
    input_ids, attention_mask = given["input_ids"], given.get("attention_mask")
    tokens = input_ids.shape[1]
    chunks = chunks_of(mesh.ring_order, mesh.ring.size)
    check_multiple(tokens, chunks * mesh.sequence.size, "ranks of a sample (twice, in zigzag)")
    position_ids = given.get("position_ids")
    if position_ids is None:
        position_ids = torch.arange(tokens, device=input_ids.device)[None]
    position_ids = position_ids.expand(input_ids.shape)
    _check_mask(attention_mask)
    _check_positions(position_ids, attention_mask)
    starts = Documents.from_positions(position_ids.cpu().numpy()).starts
    labels = given.get("labels")
    if labels is None:
        labels = input_ids.clone()
        for row, row_starts in enumerate(starts):
            labels[row, list(row_starts)] = IGNORED_LABEL
        if attention_mask is not None:
            labels[attention_mask == 0] = IGNORED_LABEL
    if attention_mask is not None and bool((labels[attention_mask == 0] != IGNORED_LABEL).any()):
        raise ValueError(f"padding has labels; valid: {IGNORED_LABEL} where attention_mask is 0")
    shift_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    sizes = mesh.ring.size, mesh.sequence.size
    local = torch.from_numpy(shard_of(mesh.ring_order, tokens, *sizes, mesh.shard))
    whole = {"input_ids": input_ids, "position_ids": position_ids, "shift_labels": shift_labels}
    positions = position_ids
    if attention_mask is not None:
        whole["padding"] = attention_mask == 0
        positions = position_ids.masked_fill(attention_mask == 0, 0)
    longest = int(positions.max()) + 1
    shard = {name: x[:, local.to(x.device)].to(mesh.device) for name, x in whole.items()}
    documents = SplitDocuments(starts, mesh, longest, shard.pop("padding", None))
    if mesh.device.type != "cpu" and mesh.ring.size == 1 and not documents.one_per_sequence:
        Packing.of(documents, tokens, mesh.device)  # before the step, in which the host would wait
    return shard | {"documents": documents}


def padded(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Pad a batch's samples at their end to a length that :func:`shard_batch` can cut.

    Padding has no labels, is seen by no token, and changes neither the loss nor its gradients.

    Args:
        batch: As :func:`shard_batch` takes it.
        mesh: The mesh that this rank belongs to.

    Returns:
        The batch; unchanged if its length divides already.
    """
    given = batch_tensors(batch)
    input_ids = given["input_ids"]
    divisor = chunks_of(mesh.ring_order, mesh.ring.size) * mesh.sequence.size
    missing = -input_ids.shape[1] % divisor
    if not missing:
        return dict(batch)
    given.setdefault("attention_mask", torch.ones_like(input_ids))
    fill = {"labels": IGNORED_LABEL}
    return {
        name: torch.nn.functional.pad(x, (0, missing), value=fill.get(name, 0))
        for name, x in given.items()
    }


def batch_tensors(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a batch's entries as tensors of int64, after checks of names, types and shapes."""
    if unknown := [name for name in batch if name not in _KEYS]:
        raise ValueError(f"the batch has {str(unknown[0])[:100]!r}; valid: {', '.join(_KEYS)}")
    given = {name: _whole_numbers(name, x) for name, x in batch.items() if x is not None}
    input_ids = given.get("input_ids")
    if input_ids is None or input_ids.dim() != 2 or not input_ids.numel():
        shape = "missing" if input_ids is None else f"of shape {list(input_ids.shape)}"
        raise ValueError(f"the batch's input_ids are {shape}; valid: [samples, tokens]")
    for name, x in given.items():
        alike = {input_ids.shape} | ({(1, input_ids.shape[1])} if name == "position_ids" else set())
        if tuple(x.shape) not in alike:
            raise ValueError(
                f"{name} is {list(x.shape)}; valid: {list(input_ids.shape)}, as input_ids"
            )
    return given


def _whole_numbers(name: str, given: Any) -> Tensor:
    """Return an entry of a batch as a tensor of int64."""
    try:
        x = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        kind = type(given).__name__
        raise ValueError(
            f"the batch's {name} are a {kind}; valid: a tensor or equally long lists of whole "
            "numbers"
        ) from None
    if x.is_floating_point() or x.is_complex():
        raise ValueError(f"the batch's {name} are {x.dtype}; valid: whole numbers, torch.int64")
    return x.long()


def _check_mask(attention_mask: Tensor | None) -> None:
    """Raise ValueError unless a mask is ones, then zeros.

    Causal attention never sees later tokens, so padding at the end needs no mask.
    """
    if attention_mask is None:
        return
    values = attention_mask.unique()
    if others := [int(value) for value in values if value not in (0, 1)]:
        raise ValueError(
            f"attention_mask has {others[0]}; valid: 0 and 1, and position_ids that begin again at "
            "0 in each document"
        )
    if bool((attention_mask.diff(dim=1) > 0).any()):
        raise ValueError("attention_mask has zeros before ones; valid: padding at the end")


def _check_positions(position_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Raise ValueError unless each position is 0 or one more than that before it.

    A sample may begin inside a document, at any position.
    """
    wrong = (position_ids.diff(dim=1) != 1) & (position_ids[:, 1:] != 0)
    if attention_mask is not None:
        wrong &= attention_mask[:, 1:] != 0
    if bool(wrong.any()):
        row, at = wrong.nonzero()[0].tolist()
        before, value = position_ids[row, at : at + 2].tolist()
        raise ValueError(
            f"position_ids of sample {row} have {value} after {before}; valid: increasing by 1 "
            "inside a document, beginning again at 0 in the next one"
        )


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


def loss(output: Any, labels: Tensor, num_items: Tensor | float, micro_steps: int = 1) -> Tensor:
    """Return this rank's part of the mean token loss: the sum of its token losses / `num_items`.

    The parts of all ranks add up to the loss. Their gradients add up too, because
    :func:`odysseus.hf.prepare` makes ZeRO-3 sum them. (DDP would average them.) If the model
    returns router logits, its weighted load-balancing loss is added.

    Args:
        output: The model's output. Its ``logits`` are [B, s, V] or, with tiled loss, the sum of
            token losses.
        labels: ``shift_labels`` [B, s].
        num_items: Labels other than -100 of the whole step, on all ranks: :func:`count_items`.
        micro_steps: Divides the load-balancing loss, which is a mean over the tokens of a forward.
            Transformers' trainer adds all of it in each micro step, TRL's divides by their number.
    """
    total = sum_of_losses(output, labels)
    mean = total / torch.as_tensor(num_items, dtype=total.dtype, device=total.device)
    if getattr(output, "router_logits", None) is None:
        return mean
    if not hasattr(output, "router_loss"):
        raise ValueError(
            "the output has router logits of this rank's tokens alone; valid: a model that "
            "odysseus.hf.prepare has changed, or output_router_logits = false"
        )
    return mean + output.router_loss / micro_steps


def sum_over_ranks(x: Tensor, mesh: Mesh) -> Tensor:
    """Sum over the ranks that share a sample, for losses that are no sum over tokens.

    Each rank may compute the same loss from it, and send it backward: its gradient goes to this
    rank's part alone, and ZeRO-3 sums the parts.

    Args:
        x: This rank's part, of any shape, the same on every rank.
    """
    total = x.detach().clone()
    for axis in (mesh.sequence, mesh.ring):
        transfers.all_reduce_plain(total, axis)
    return x + (total - x.detach())


def sum_of_losses(output: Any, labels: Tensor) -> Tensor:
    """Return the sum of token losses: the head's own sum if it is tiled, else from the logits."""
    logits = output.logits
    return logits if logits.dim() == 0 else cross_entropy_sum(logits, labels)
