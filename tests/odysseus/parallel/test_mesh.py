"""A rank's GPU, as PyTorch and a launcher say; the timeout of its process groups."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from torch.distributed import distributed_c10d

from odysseus.config.run import RunConfig
from odysseus.parallel import mesh
from tests.support.ranks import run_ranks


def seen(monkeypatch: pytest.MonkeyPatch, gpus: int, rank: int, ranks: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))


@pytest.mark.parametrize(
    ("gpus", "rank", "device"),
    [(8, 3, "cuda:3"), (1, 3, "cuda:0"), (0, 3, "cpu")],
    ids=["all are seen", "one is seen", "none"],
)
def test_a_ranks_device(gpus: int, rank: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, gpus, rank, 8)
    assert str(mesh.pick_device("auto")) == device
    assert str(mesh.pick_device("cpu")) == "cpu"
    if gpus:
        mesh.check_gpus()


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, 4, 5, 8)
    with pytest.raises(ValueError, match="8 ranks of this node see 4 GPUs; valid: at most as many"):
        mesh.start_process_group(torch.device("cuda", 1), 1)


def timeouts(run: RunConfig) -> list[timedelta]:
    """Timeouts of the groups that a mesh adds to those of this rank, where all ranks' is 77 s."""
    cpu, world = torch.device("cpu"), mesh.world_group()
    before, known = world._get_backend(cpu).options._timeout, {*distributed_c10d._world.pg_map}
    distributed_c10d._set_pg_timeout(timedelta(seconds=77), world)
    mesh.make_mesh(cpu, run)
    distributed_c10d._set_pg_timeout(before, world)
    added = distributed_c10d._world.pg_map.keys() - known
    return [group._get_backend(cpu).options._timeout for group in added]


def test_every_group_has_the_timeout_of_all_ranks() -> None:
    """PyTorch gives a new group 30 minutes with gloo, and 10 with NCCL."""
    run = RunConfig(world_size=4, ring_parallel_size=2, method="ulysses")
    for found in run_ranks(timeouts, 4, run):
        assert len(found) > 2
        assert {*found} == {timedelta(seconds=77)}
