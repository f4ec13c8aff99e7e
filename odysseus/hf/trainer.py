"""transformers.Trainer, and trainers made from it, on samples that are split over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from odysseus.hf.batches import count_items, loss, padded, shard_batch
from odysseus.parallel.mesh import Mesh

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
# What collators add for kernels, and position_ids say already.
_IMPLIED = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
_REFUSED = ("bf16", "fp16", "torch_compile", "deepspeed", "fsdp", "group_by_length")


def _shard_of(collate: Callable[[Any], Any], mesh: Mesh, samples: list[Any]) -> dict[str, Any]:
    """Collate samples, pad them to a length that divides, and cut this rank's shard out."""
    batch = dict(collate(samples))
    if implied := sorted(_IMPLIED & batch.keys()):
        if "position_ids" not in batch:
            raise ValueError(
                f"the batch has {implied[0]} and no position_ids, which say where documents begin; "
                "valid: a collator with return_position_ids = true"
            )
        batch = {name: x for name, x in batch.items() if name not in _IMPLIED}
    return shard_batch(padded(batch, mesh), mesh)


class SplitSamples:
    """Makes a trainer of Transformers train a prepared model on this rank's shards.

    Put it before the trainer: ``class MyTrainer(SplitSamples, SFTTrainer)``. All ranks of a replica
    read the same samples. Losses and gradients are those of the whole step's labels, gradients are
    sharded after every micro step, and saved checkpoints have whole weights and optimizer states.

    Args:
        mesh: The mesh that this rank belongs to.
        options: Arguments of the trainer; its model is one that ``prepare`` has changed.

    Raises:
        ValueError: the model is not prepared, or an argument is not for a prepared model.
    """

    cut = staticmethod(_shard_of)
    """cut(collate, mesh, samples) -> this rank's shard; a loader's processes call it too."""

    valid: Mapping[str, Any] = {
        "loss_type": "nll",
        "label_smoothing_factor": 0.0,
        "neftune_noise_alpha": None,
    }
    """Arguments of the trainer that have one valid value, because the loss is computed here."""

    def __init__(self, *given: Any, mesh: Mesh, **options: Any) -> None:
        self.mesh = mesh
        for arguments in (*given, *options.values()):
            if isinstance(arguments, TrainingArguments):
                check_arguments(arguments, self.valid)
        super().__init__(*given, **options)
        trainer: Any = self
        if not isinstance(trainer.model, FSDPModule):
            raise ValueError(
                "the trainer's model is not prepared; valid: odysseus.hf.prepare first"
            )
        check_arguments(trainer.args, self.valid)  # it may have made them
        if trainer.compute_loss_func is not None:
            raise ValueError("compute_loss_func is given; valid: None, the loss of split samples")
        blocks: Any = trainer.model.modules()  # pyrefly: ignore
        recomputes = any(getattr(block, "gradient_checkpointing", False) for block in blocks)
        if recomputes and trainer.args.activation_checkpointing:
            raise ValueError(
                f"{type(trainer.args).__name__}.activation_checkpointing is True; valid: False, "
                "as the prepared model recomputes its blocks already"
            )
        trainer.is_distributed_loading_by_transformers = True  # Accelerate wraps nothing
        trainer.loss_is_scaled_for_ga = True

    @property
    def parts(self) -> int:
        """Number of parts that a step's loss is the sum of: every rank has that of its tokens."""
        return self.mesh.world.size

    def get_cp_size(self) -> int:
        """Return how many ranks share a sample. (Transformers' ``get_sp_size`` would also multiply
        the loader's length.)"""
        return self.mesh.world.size // self.mesh.replicas

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader[Any]:
        from accelerate.data_loader import prepare_data_loader

        trainer: Any = self
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description)
        loader = DataLoader(
            dataset,
            batch_size,
            sampler=sampler_fn(dataset) if sampler_fn else None,
            collate_fn=partial(self.cut, collate, self.mesh),
            num_workers=trainer.args.dataloader_num_workers,
            drop_last=trainer.args.dataloader_drop_last,
        )
        return prepare_data_loader(
            loader,
            num_processes=self.mesh.replicas,
            process_index=self.mesh.replica,
            put_on_device=False,
            use_seedable_sampler=True,
            data_seed=trainer.args.data_seed,
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        return count_items(batch_samples, self.mesh)

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this rank's part of the mean loss over all labels of the step."""
        outputs = model(**inputs)
        if num_items_in_batch is None:
            num_items_in_batch = count_items([inputs], self.mesh)
        # TRL's trainers, which have this attribute, divide the router's loss by the micro steps.
        divides = model.training and hasattr(self, "aux_loss_enabled")
        steps = self.current_gradient_accumulation_steps if divides else 1  # pyrefly: ignore
        part = loss(outputs, inputs["shift_labels"], num_items_in_batch, steps)
        return (part, outputs) if return_outputs else part

    def training_step(self, *given: Any, **options: Any) -> Tensor:
        """Train one micro step; return its loss such that the ranks' mean is the loss."""
        return super().training_step(*given, **options) * self.parts  # pyrefly: ignore

    def prediction_step(
        self, model: Any, inputs: Mapping[str, Any], *_: Any, **__: Any
    ) -> tuple[Tensor, None, None]:
        """Return the mean loss of a batch, over all ranks; there are no whole logits to return."""
        with torch.no_grad():
            whole = self.compute_loss(model, inputs)
        dist.all_reduce(whole, group=self.mesh.world.group)
        return whole * self.parts / self.mesh.world.size, None, None

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        yield  # gradients stay sharded between micro steps

    def _sync_replicated_trainable_parameters(self, model: Any) -> None:
        pass  # every parameter is sharded

    def _clip_grad_norm(self, model: Any) -> Any:
        return _whole(super()._clip_grad_norm(model))  # pyrefly: ignore

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return _whole(super()._get_grad_norm(model, grad_norm))  # pyrefly: ignore

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        trainer: Any = self
        state_dict = get_model_state_dict(trainer.model, options=_WHOLE)
        # A weight that is tied has a copy under each of its names.
        every = {n for n, _ in trainer.model.named_parameters(remove_duplicate=False)}
        again = every - {n for n, _ in trainer.model.named_parameters()}
        state_dict = {name: x for name, x in state_dict.items() if name not in again}
        if trainer.args.should_save:
            super()._save(output_dir, state_dict)  # pyrefly: ignore

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        trainer: Any = self
        states = get_optimizer_state_dict(trainer.model, _plain(trainer.optimizer), options=_WHOLE)
        if trainer.args.should_save:
            torch.save(states, Path(output_dir, OPTIMIZER_NAME))
            torch.save(trainer.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        trainer: Any = self
        weights: dict[str, Any] = {}
        for file in sorted(Path(resume_from_checkpoint).glob("*.safetensors")):
            weights |= load_file(file)
        if not weights:
            raise ValueError(f"{resume_from_checkpoint} has no safetensors; valid: a checkpoint")
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(trainer.model, weights, options=options)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        trainer: Any = self
        states, schedule = (
            torch.load(Path(checkpoint, name), map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(trainer.model, _plain(trainer.optimizer), states, options=options)
        trainer.lr_scheduler.load_state_dict(schedule)


def check_arguments(arguments: TrainingArguments, valid: Mapping[str, Any]) -> None:
    """Raise ValueError if a trainer's arguments ask for what a prepared model does not do.

    Args:
        valid: Names of arguments, and the only value that each may have.
    """
    kind = type(arguments).__name__
    for name in _REFUSED:
        if given := getattr(arguments, name, None):
            raise ValueError(
                f"{kind}.{name} is {given!r}; valid: none, RunConfig decides precision, sharding "
                "and compilation of a prepared model"
            )
    for name, only in valid.items():
        if (given := getattr(arguments, name, only)) != only:
            raise ValueError(f"{kind}.{name} is {given!r}; valid on a split sequence: {only!r}")


class SplitTrainer(SplitSamples, Trainer):
    """transformers.Trainer for a prepared model; :class:`SplitSamples` says how."""


def _whole(norm: Any) -> Any:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _plain(optimizer: Any) -> Any:
    """The optimizer that Accelerate has wrapped."""
    return getattr(optimizer, "optimizer", optimizer)
