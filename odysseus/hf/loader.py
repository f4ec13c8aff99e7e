"""A data loader of this rank's shards, which checks that ranks read the same batches."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from odysseus.hf.batches import batch_tensors, padded, shard_batch
from odysseus.parallel.mesh import Mesh

_END, _REFUSED = -1, -2
"""Digests of no batch: this rank has no more, or it refuses this one."""


class ShardedLoader:
    """A data loader whose batches are sharded; every rank of a replica must read the same ones.

    A ``DistributedSampler(dataset, num_replicas=mesh.replicas, rank=mesh.replica)`` does that. A
    batch whose length does not divide is padded.

    Args:
        loader: Yields batches as :func:`shard_batch` takes them, equally many on every rank.
        mesh: The mesh that this rank belongs to.
    """

    def __init__(self, loader: Iterable[Mapping[str, Any]], mesh: Mesh) -> None:
        self.loader, self.mesh = loader, mesh

    def __len__(self) -> int:
        return len(self.loader)  # pyrefly: ignore

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield shards.

        Raises:
            ValueError: ranks of a replica have read different batches, some ranks have read fewer
                batches than others, or :func:`shard_batch` refuses one; raised on every rank.
        """
        batches = iter(self.loader)
        while True:
            shard, digest, error = _next_shard(batches, self.mesh)
            _check_same(digest, error, self.mesh)
            if shard is None:
                return
            yield shard


def _next_shard(
    batches: Iterator[Mapping[str, Any]], mesh: Mesh
) -> tuple[dict[str, Any] | None, int, ValueError | None]:
    """Return the next batch's shard, a digest of the whole batch, and why it was refused."""
    batch = next(batches, None)
    if batch is None:
        return None, _END, None
    try:
        whole = batch_tensors(padded(batch, mesh))
        shard = shard_batch(whole, mesh)
    except ValueError as error:
        return None, _REFUSED, error
    digest = 0
    for name in sorted(whole):
        digest = zlib.crc32(f"{name} {list(whole[name].shape)}".encode(), digest)
        digest = zlib.crc32(whole[name].cpu().contiguous().numpy().data, digest)
    return shard, digest, None


def _check_same(digest: int, error: ValueError | None, mesh: Mesh) -> None:
    """Raise ValueError on every rank unless all ranks have a batch and replicas agree on theirs."""
    state = min(digest, 0)
    states = torch.tensor([state, -state], device=mesh.device)
    dist.all_reduce(states, dist.ReduceOp.MIN, group=mesh.world.group)
    least, most = int(states[0]), -int(states[1])
    if least == _REFUSED:
        raise error or ValueError("another rank's batch was refused; its message says why")
    if least != most:
        raise ValueError(
            "some ranks have read all their batches and others have more; valid: as many on every "
            "rank, such as a DistributedSampler with drop_last or an even number of samples"
        )
    same = torch.tensor([digest, -digest], device=mesh.device)
    for axis in (mesh.sequence, mesh.ring):
        dist.all_reduce(same, dist.ReduceOp.MIN, group=axis.group)
    if same[0] != -same[1]:
        raise ValueError(
            "ranks of one replica have read different batches; valid: a DistributedSampler with "
            "num_replicas=mesh.replicas, rank=mesh.replica"
        )
