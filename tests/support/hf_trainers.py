"""Trainers of Transformers, TRL and PEFT on a plain model in one process, and on a prepared model
over ranks (for tests/odysseus/hf/test_trainers.py)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.loss import loss_utils

from odysseus import hf
from odysseus.config.run import RunConfig
from odysseus.parallel.mesh import make_mesh
from tests.support.hf_models import CPU, build, norms_in_fp64

STEPS = 4


@dataclass(frozen=True)
class Training:
    """A training, and where its results go.

    Attributes:
        folder: Where weights are saved.
        shards: Ranks that share a sample; the others are replicas.
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


def arguments(training: Training, batch: int) -> TrainingArguments:
    given: dict[str, Any] = {
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
    return TrainingArguments(**given | training.arguments)


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
        arguments(training, 2),
        data_collator=collate,
        train_dataset=rows,  # pyright: ignore[reportArgumentType]
        eval_dataset=rows[:4],  # pyright: ignore[reportArgumentType]
    )
    trainer._loss_shifts_labels = True  # it asks whether the loss is Transformers' own
    return finished(trainer, training)


def split(training: Training) -> list[dict[str, float]]:
    """Train on this rank's shards."""
    exact()
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": 29500}
    of_launcher = {name: str(value) for name, value in names.items()}
    os.environ |= of_launcher | {"MASTER_ADDR": "127.0.0.1"}  # as torchrun sets them
    from odysseus.hf.trainer import SplitTrainer

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
    model, rows = build("llama", "ulysses"), samples()
    hf.prepare(model, mesh, run)
    trainer = SplitTrainer(
        model,
        arguments(training, 2 // mesh.replicas),
        data_collator=collate,
        train_dataset=rows,
        eval_dataset=rows[:4],
        mesh=mesh,
    )
    return finished(trainer, training)


def finished(trainer: Any, training: Training) -> list[dict[str, float]]:
    trainer.train(resume_from_checkpoint=training.resume or None)
    trainer.save_model(str(training.folder / "trained"))
    kept = ("loss", "grad_norm", "eval_loss", "epoch")
    return [
        {name: float(row[name]) for name in kept if name in row}
        for row in trainer.state.log_history
    ]
