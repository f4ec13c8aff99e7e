"""What tests/test_checkpoint.py has ranks do, apart from Transformers, which takes seconds to
import on each."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from methods import METHODS
from odysseus import checkpoint
from odysseus.config import RunConfig
from odysseus.data import Samples
from odysseus.mesh import make_mesh
from odysseus.step import Trainer
from tests.hf_models import norms_in_fp64

CPU = torch.device("cpu")


def errors(runs: list[RunConfig], expected: list[str]) -> list[tuple[float, float]]:
    """Of each run on this rank: the errors of its loss, and of the worst gradient relative to that
    tensor's largest element.

    Args:
        expected: Safetensors of each run's gradients by name, and of its ``loss``.
    """
    norms_in_fp64()
    found = []
    for run, file in zip(runs, expected, strict=True):
        gradients = load_file(file)
        trainer = Trainer(run, METHODS[run.method], mesh := make_mesh(CPU, run))
        mine = trainer.forward_backward(Samples(run, mesh.replica, mesh.shard, CPU).step(0))
        worst = 0.0
        for piece, gradient in trainer.gradients():
            whole = gradients[piece.name]
            error = (gradient - piece.of(whole)).abs().max() / whole.abs().max()
            worst = max(worst, error.item())
        found.append((abs(mine.item() / gradients["loss"].item() - 1), worst))
    return found


def saved_again(runs: list[RunConfig], folder: str, file_bytes: int) -> None:
    """Load each run's checkpoint and save it as folder/0, folder/1, …"""
    with patch.object(checkpoint, "FILE_BYTES", file_bytes):
        for i, run in enumerate(runs):
            mesh = make_mesh(CPU, run)
            trainer = Trainer(run, METHODS[run.method], mesh)
            checkpoint.save(trainer.held(), run, mesh.world, CPU, Path(folder) / str(i))


def bytes_read(runs: list[RunConfig]) -> list[tuple[int, int]]:
    """Of each run: what this rank asks of the files, and what its shards hold of them."""
    read = 0

    class Counted:
        def __init__(self, part: Any) -> None:
            self.part = part

        def __getitem__(self, at: Any) -> torch.Tensor:
            nonlocal read
            tensor = self.part[at]
            read += tensor.nbytes
            return tensor

    class Opened:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.file = safe_open(*args, **kwargs)

        def __enter__(self) -> Any:
            self.opened = self.file.__enter__()
            return self

        def __exit__(self, *exception: Any) -> None:
            self.file.__exit__(*exception)

        def keys(self) -> Any:
            return self.opened.keys()

        def get_slice(self, name: str) -> Counted:
            return Counted(self.opened.get_slice(name))

    found = []
    for run in runs:
        read = 0
        with patch.object(checkpoint, "safe_open", Opened):
            trainer = Trainer(run, METHODS[run.method], make_mesh(CPU, run))
        found.append((read, sum(view.nbytes for _, view in trainer.held())))
    return found
