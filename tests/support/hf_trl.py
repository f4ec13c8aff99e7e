"""TRL's trainers on a plain model in one process, and on a prepared model over ranks (for
tests/odysseus/hf/test_trl.py)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import DataCollatorWithFlattening, PreTrainedModel
from transformers.models.mixtral import modeling_mixtral
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer import utils

from odysseus import hf
from odysseus.hf.preferences import SplitPreferences
from odysseus.hf.trainer import SplitSamples
from odysseus.parallel.mesh import Mesh
from tests.support.hf_adapters import adapted
from tests.support.hf_mistakes import message_of
from tests.support.hf_models import build, load_balancing_loss
from tests.support.hf_tokenizer import WORDS, tokenizer
from tests.support.hf_trainers import Training, as_launched, exact, finished, given, samples

# What TRL turns on by default, and RunConfig decides.
_OFF = {"bf16": False, "activation_checkpointing": False}


class SplitSFTTrainer(SplitSamples, SFTTrainer):
    pass


class SplitDPOTrainer(SplitPreferences, DPOTrainer):
    pass


class LogProbsInFp64:
    """The function of a head's hidden states that TRL computes in fp32; no bias, no scale."""

    @staticmethod
    def apply(hidden_TD: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        _, labels_T = others[:2]
        logits_TV = hidden_TD @ weight.T
        log_probs_TV = logits_TV.log_softmax(-1)
        entropy_T = -(log_probs_TV.exp() * log_probs_TV).sum(-1)
        log_probs_T = log_probs_TV.gather(1, labels_T[:, None])[:, 0]
        is_top1_T = logits_TV.argmax(-1) == labels_T
        return log_probs_T, entropy_T, None, logits_TV.mean(-1), is_top1_T


def exact_trl() -> None:
    """Replace what Transformers and TRL round to fp32."""
    exact()
    modeling_mixtral.load_balancing_loss_func = balance_in_fp64
    utils._ChunkedLogProbFunction = LogProbsInFp64


def balance_in_fp64(
    router_logits: tuple[Tensor, ...], _: int, top_k: int, attention_mask: Tensor | None = None
) -> Tensor:
    """Compute what Transformers rounds to fp32, without padding."""
    kept = slice(None) if attention_mask is None else attention_mask.flatten() == 1
    return load_balancing_loss(tuple(logits[kept] for logits in router_logits))


def frozen(attention: str) -> PreTrainedModel:
    """Build a reference that differs from the trained model."""
    model = build("llama", attention)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.requires_grad_(False)


def pairs() -> list[dict[str, str]]:
    """Pairs of answers of unequal lengths to one prompt each."""
    found = []
    for row in samples():
        words = [WORDS[i] for i in row["input_ids"]]
        parts = {"prompt": words[:7], "chosen": words[7:], "rejected": words[:3] + words[9:15]}
        found.append({name: " ".join(part) for name, part in parts.items()})
    return found


def of_replica(mesh: Mesh) -> dict[str, int]:
    """Return the samples of one of the replicas, which together have those of the one process: an
    evaluation's loss is the mean of its batches' losses."""
    return dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size"), 2 // mesh.replicas
    )


def sft(training: Training, packed: bool, name: str = "llama") -> list[dict[str, float]]:
    """Train with SFTTrainer; return the log."""
    exact_trl()
    options = given(training, 2) | _OFF
    if packed:
        options |= {"padding_free": True, "max_length": None}
    rows = Dataset.from_list(samples())
    data = {"train_dataset": rows, "eval_dataset": rows.select(range(4))}
    if not training.shards:
        config = SFTConfig(**options)
        model = build(name, "sdpa")
        trainer = SFTTrainer(model, config, processing_class=tokenizer(), **data)
        trainer._loss_shifts_labels = True  # it asks whether the loss is Transformers' own
        return finished(trainer, training)
    mesh, run = as_launched(training)
    model = build(name, "ulysses")
    hf.prepare(model, mesh, run)
    config = SFTConfig(**options | of_replica(mesh))
    trainer = SplitSFTTrainer(model, config, processing_class=tokenizer(), mesh=mesh, **data)
    return finished(trainer, training)


def dpo(training: Training, adapters: bool) -> list[dict[str, float]]:
    """Train a model, or its adapters, with DPOTrainer beside a frozen model; return the log."""
    exact_trl()
    options = given(training, 2) | _OFF
    rows = Dataset.from_list(pairs())
    data: dict[str, Any] = {"train_dataset": rows, "eval_dataset": rows.select(range(4))}
    data["processing_class"] = tokenizer()
    attention = "ulysses" if training.shards else "sdpa"
    mesh, run = as_launched(training) if training.shards else (None, None)
    model = adapted("attention", attention) if adapters else build("llama", attention)
    reference = frozen(attention)
    if mesh is None or run is None:
        trainer = DPOTrainer(model, reference, DPOConfig(**options), **data)
        return finished(trainer, training)
    hf.prepare(model, mesh, run)
    hf.prepare(reference, mesh, run)
    config = DPOConfig(**options | of_replica(mesh))
    trainer = SplitDPOTrainer(model, reference, config, mesh=mesh, **data)
    return finished(trainer, training)


def refusals(folder: Path) -> dict[str, str]:
    """Return the error message of each mistake."""
    training = Training(folder, 1, {"activation_checkpointing": True})
    mesh, run = as_launched(training)
    model, reference = build("llama", "ulysses"), frozen("ulysses")
    hf.prepare(model, mesh, run)
    options = given(training, 2) | _OFF
    rows = {"train_dataset": Dataset.from_list(pairs()), "processing_class": tokenizer()}
    rows["eval_dataset"] = rows["train_dataset"]

    def dpo_with(**changed: Any) -> None:
        SplitDPOTrainer(model, reference, DPOConfig(**options | changed), mesh=mesh, **rows)

    def sft_with(own_loss: Any = None, **changed: Any) -> None:
        data = Dataset.from_list(samples())
        SplitSFTTrainer(
            model,
            SFTConfig(**options | changed),
            train_dataset=data,
            eval_dataset=data,
            processing_class=tokenizer(),
            compute_loss_func=own_loss,
            mesh=mesh,
        )

    def flat(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        collate = DataCollatorWithFlattening(
            return_position_ids=False, return_flash_attn_kwargs=True, return_tensors="pt"
        )
        return collate(rows)

    found = {"reference": message_of(dpo_with)}
    hf.prepare(reference, mesh, run)
    return found | {
        "loss": message_of(partial(dpo_with, loss_type=["ipo"])),
        "reference of TRL": message_of(partial(dpo_with, precompute_ref_log_probs=True)),
        "precision": message_of(partial(sft_with, bf16=True)),
        "checkpointing": message_of(partial(sft_with, activation_checkpointing=True)),
        "noise": message_of(partial(sft_with, neftune_noise_alpha=5.0)),
        "another loss": message_of(partial(sft_with, loss_type="dft")),
        "a loss of one's own": message_of(partial(sft_with, own_loss=lambda *_: None)),
        "documents": message_of(partial(SplitSamples.cut, flat, mesh, samples()[:2])),
    }
