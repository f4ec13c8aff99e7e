"""Trainers of Transformers, TRL and PEFT on a plain model in one process, and on a prepared model
over ranks (for tests/odysseus/hf/test_trainers.py)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.loss import loss_utils

from odysseus import hf
from odysseus.config.run import RunConfig
from odysseus.parallel.mesh import Mesh, make_mesh
from tests.support.hf_models import CPU, build, norms_in_fp64

STEPS = 4
KEPT_OF_PREFERENCES = (
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected"),
)


@dataclass(frozen=True)
class Training:
    """A training, and where its results go.

    Attributes:
        folder: Where weights are saved.
        shards: Ranks that share a sample; the others are replicas. 0 for a plain model.
        toggles: The run's.
        arguments: Arguments of the trainer that differ from :func:`arguments`.
        resume: Checkpoint to go on from.
    """

    folder: Path
    shards: int = 1
    toggles: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    resume: str = ""


def samples() -> list[dict[str, list[int]]]:
    """Samples of 20 to 47 tokens, a part of which have labels, so that micro steps' counts
    differ."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for index in range(4 * STEPS):
        ids = torch.randint(1, 320, (20 + 9 * index % 28,), generator=generator).tolist()
        labels = [-100 if at < index else token for at, token in enumerate(ids)]
        found.append({"input_ids": ids, "labels": labels})
    return found


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad samples to the longest of a batch."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
        for name, value in fill.items()
    }


def given(training: Training, batch: int) -> dict[str, Any]:
    """The arguments of a trainer with samples of this many in a micro step of a replica."""
    always: dict[str, Any] = {
        "output_dir": str(training.folder),
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    return always | training.arguments


def exact() -> None:
    """Replace what Transformers rounds to fp32, in norms and loss."""
    norms_in_fp64()
    torch.set_num_threads(1)

    def mean_loss(
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
        items = (shifted != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return F.cross_entropy(logits.flatten(0, 1), shifted.flatten(), reduction="sum") / items

    loss_utils.LOSS_MAPPING["ForCausalLM"] = mean_loss


def plain(training: Training) -> list[dict[str, float]]:
    """Train in one process, as anyone would; return the log."""
    exact()
    rows = samples()
    trainer = Trainer(
        build("llama", "sdpa"),
        TrainingArguments(**given(training, 2)),
        data_collator=collate,
        train_dataset=rows,
        eval_dataset=rows[:4],
    )
    trainer._loss_shifts_labels = True  # it asks whether the loss is Transformers' own
    return finished(trainer, training)


def split(training: Training) -> list[dict[str, float]]:
    """Train on this rank's shards."""
    exact()
    mesh, run = as_launched(training)
    from odysseus.hf.trainer import SplitTrainer

    model, rows = build("llama", "ulysses"), samples()
    hf.prepare(model, mesh, run)
    trainer = SplitTrainer(
        model,
        TrainingArguments(**given(training, 2 // mesh.replicas)),
        data_collator=collate,
        train_dataset=rows,
        eval_dataset=rows[:4],
        mesh=mesh,
    )
    return finished(trainer, training)


def as_launched(training: Training) -> tuple[Mesh, RunConfig]:
    """Set what torchrun sets, and return a training's mesh, registered, and its run."""
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": 29500}
    of_launcher = {name: str(value) for name, value in names.items()}
    os.environ |= of_launcher | {"MASTER_ADDR": "127.0.0.1"}
    run = RunConfig(
        method="ulysses",
        world_size=world_size,
        sequence_parallel_size=training.shards,
        dtype="fp64",
        seq_len=48,
        **training.toggles,
    )
    mesh = make_mesh(CPU, run)
    hf.register(mesh)
    return mesh, run


def finished(trainer: Any, training: Training) -> list[dict[str, float]]:
    trainer.train(resume_from_checkpoint=training.resume or None)
    trainer.save_model(str(training.folder / "trained"))
    kept = ("loss", "grad_norm", "epoch", *KEPT_OF_PREFERENCES)
    return [
        {name: float(x) for name, x in row.items() if name.removeprefix("eval_") in kept}
        for row in trainer.state.log_history
    ]


def assert_same(folder: Path, logs: list[Any], expected: tuple[Path, Any]) -> None:
    """Assert that ranks have logged and saved what one process has."""
    for log in logs:
        assert len(log) == len(expected[1])
        for found, plain_row in zip(log, expected[1], strict=True):
            assert found.keys() == plain_row.keys()
            for name, value in plain_row.items():  # the trainer adds losses in fp32
                near = pytest.approx(value, rel=1e-6 if name == "loss" else 1e-9)
                assert found[name] == near, (name, log)
    (file,) = (expected[0] / "trained").glob("*.safetensors")
    of_ours, of_plain = (load_file(f / "trained" / file.name) for f in (folder, expected[0]))
    assert of_ours.keys() == of_plain.keys()
    for name, weight in of_plain.items():
        torch.testing.assert_close(of_ours[name], weight, rtol=1e-9, atol=1e-9)
