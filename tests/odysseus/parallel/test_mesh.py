"""A rank's GPU, as PyTorch and a launcher say."""

from __future__ import annotations

import pytest
import torch

from odysseus.parallel import mesh


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
