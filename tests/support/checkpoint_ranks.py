"""Functions that ranks run for tests/odysseus/io/test_checkpoint.py.

They do not import Transformers, which takes seconds on each rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from methods import METHODS
from odysseus.config.run import RunConfig
from odysseus.io import checkpoint
from odysseus.io.text import Samples
from odysseus.model.layers import Head
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.hf_models import norms_in_fp64

CPU = torch.device("cpu")


def errors(runs: list[RunConfig], expected: list[str]) -> list[tuple[float, float, float]]:
    """Return, per run, this rank's errors of its loss, of the worst gradient and of its shard's
    logits. The latter two are relative to that tensor's largest element.

    Args:
        expected: Safetensors of each run's gradients by name, of its ``loss`` and its ``logits``.
    """
    norms_in_fp64()
    result = []
    for run, file in zip(runs, expected, strict=True):
        gradients = load_file(file)
        trainer = Trainer(run, METHODS[run.method], mesh := make_mesh(CPU, run))
        samples = Samples(run, mesh.replica, mesh.shard, CPU)
        logits = recorded_logits(trainer.model)
        loss = trainer.forward_backward(samples.step(0))
        worst = 0.0
        for piece, gradient in trainer.gradients():
            whole = gradients[piece.name]
            error = (gradient - piece.of(whole)).abs().max() / whole.abs().max()
            worst = max(worst, error.item())
        whole = gradients["logits"][0, samples.positions]
        logit_errors = [((x - whole).abs().max() / whole.abs().max()).item() for x in logits]
        assert bool(logits) == (run.model.implementation == "native")
        loss_error = abs(loss.item() / gradients["loss"].item() - 1)
        result.append((loss_error, worst, max(logit_errors, default=0.0)))
    return result


def recorded_logits(model: nn.Module) -> list[torch.Tensor]:
    """Return a list that a step of this project's model fills with its shard's logits. The head
    itself computes them in tiles that nothing else sees. Transformers' heads are left alone."""
    seen: list[torch.Tensor] = []
    head = model.lm_head
    if isinstance(head, Head):
        loss = head.loss

        def seeing(hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
            seen.append(F.linear(hidden_TD, weight_VD).detach())
            return loss(hidden_TD, weight_VD, labels_T)

        head.loss = seeing
    return seen


def save_again(runs: list[RunConfig], folder: str, file_bytes: int) -> None:
    """Load each run's checkpoint and save it as folder/0, folder/1, …"""
    with patch.object(checkpoint, "FILE_BYTES", file_bytes):
        for i, run in enumerate(runs):
            mesh = make_mesh(CPU, run)
            trainer = Trainer(run, METHODS[run.method], mesh)
            checkpoint.save(trainer.local_pieces(), run, mesh.world, CPU, Path(folder) / str(i))


def bytes_read(runs: list[RunConfig]) -> list[tuple[int, int]]:
    """Return, per run, the bytes that this rank reads from the files, and the bytes of its
    shards."""
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
        found.append((read, sum(view.nbytes for _, view in trainer.local_pieces())))
    return found
