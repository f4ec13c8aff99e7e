"""The embedding and the head on one rank: whole, or cut by rows over the axis that cuts weights.

A rank looks up all tokens of that axis in its own rows; the sum over ranks, which is
reduce-scattered, is the embedding (Megatron-LM, arXiv 1909.08053 §3, with the sequence parallelism
of arXiv 2205.05198). B batch, S tokens of that axis, s = S/n of this rank, D width, v rows of this
rank.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from odysseus.config.run import RunConfig
from odysseus.config.sizes import part_of
from odysseus.config.vocabulary import EMBEDDING, HEAD
from odysseus.model.layers import Vocabulary
from odysseus.model.loss import Loss, choose_loss, most_tokens
from odysseus.parallel import collectives, cut_loss, transfers
from odysseus.parallel.cut_loss import Rows
from odysseus.parallel.mesh import Axis, Mesh


def choose_vocabulary(run: RunConfig, mesh: Mesh, replicated: bool) -> Vocabulary:
    """Return the rows of the embedding and of the head that a rank of the run has, with the lookup
    and the loss that fit them.

    Args:
        replicated: Whether the stream is replicated (:class:`odysseus.method.Method`).
    """
    rows, axis = run.architecture.vocab_size, mesh.edge
    own = part_of(rows, axis.size, axis.rank)
    embedding, head = (part in run.vocabulary_cuts for part in (EMBEDDING, HEAD))
    return Vocabulary(
        embedding_rows=len(own) if embedding else rows,
        head_rows=len(own) if head else rows,
        lookup=partial(cut_lookup, axis=axis, first=own.start) if embedding else F.embedding,
        loss=_cut_loss(run, Rows(axis, own.start, replicated)) if head else choose_loss(run, rows),
    )


def cut_lookup(input_ids_Bs: Tensor, weight_vD: Tensor, axis: Axis, first: int) -> Tensor:
    """Look this rank's tokens up in a table that the axis' ranks have together: [B, s, D].

    Args:
        first: Index of this rank's first row in the vocabulary.
    """
    rows_BS = collectives.all_gather(input_ids_Bs, axis) - first
    elsewhere_BS = (rows_BS < 0) | (rows_BS >= weight_vD.shape[0])
    found_BSD = F.embedding(rows_BS.masked_fill(elsewhere_BS, 0), weight_vD)
    found_BSD.masked_fill_(elsewhere_BS.unsqueeze(-1), 0)
    return collectives.start_reduce_scatter(found_BSD, axis).wait()


def by_rank(x_BSD: Tensor, mesh: Mesh) -> Tensor:
    """Put a replicated stream in the order of a cut head: [n·B, s, D], the first rank's shard
    first."""
    return transfers.stack(x_BSD, mesh.edge.size, 1).flatten(0, 1)


def _cut_loss(run: RunConfig, rows: Rows) -> Loss:
    if not run.tiles_loss:
        return partial(cut_loss.untiled, rows=rows)
    # A tile has as many tokens of each rank as with a whole head, and a part of their logits.
    tile = most_tokens(run, run.architecture.vocab_size)
    return partial(cut_loss.ENGINES[run.loss_engine], tile=tile, rows=rows)
