"""Sequence parallelism and Ulysses Plus's memory tricks under unmodified Transformers models.

:func:`register` adds attention over a sequence that is split over ranks; :func:`shard_batch` splits
it; :func:`prepare` applies the tricks and ZeRO-3 to one model; :func:`loss` computes this rank's
part of the loss.
"""

from odysseus.hf.attention import register
from odysseus.hf.batches import count_items, loss, shard_batch, sum_over_ranks
from odysseus.hf.head import token_log_probs
from odysseus.hf.loader import ShardedLoader
from odysseus.hf.prepare import check_toggles, prepare

__all__ = [
    "ShardedLoader",
    "check_toggles",
    "count_items",
    "loss",
    "prepare",
    "register",
    "shard_batch",
    "sum_over_ranks",
    "token_log_probs",
]
