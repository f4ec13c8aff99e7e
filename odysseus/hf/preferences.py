"""TRL's DPOTrainer on pairs of samples whose tokens are split over ranks.

Log-probabilities come tile by tile, so that no rank ever holds all logits. B pairs, s tokens of
this rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from odysseus.hf.batches import padded, shard_batch, sum_over_ranks
from odysseus.hf.head import token_log_probs
from odysseus.hf.trainer import SplitSamples
from odysseus.model.loss import IGNORED_LABEL
from odysseus.parallel.mesh import Mesh

_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
# What DPOConfig must say, because the loss is computed here.
_SUPPORTED: dict[str, Any] = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "f_divergence_type": "reverse_kl",
    "ld_alpha": None,
    "use_weighting": False,
    "precompute_ref_log_probs": False,
    "sync_ref_model": False,
}


def _shard_of_pairs(
    collate: Callable[[Any], Any], mesh: Mesh, samples: list[Any]
) -> dict[str, Any]:
    """Collate pairs, chosen before rejected, pad them, and cut this rank's shard out."""
    batch = dict(collate(samples))
    reference = {name: batch.pop(name) for name in _REFERENCE if name in batch}
    prompt = batch.pop("completion_mask") == 0
    batch["labels"] = batch["input_ids"].masked_fill(prompt, IGNORED_LABEL)
    return shard_batch(padded(batch, mesh), mesh) | reference


class SplitPreferences(SplitSamples):
    """Makes TRL's DPOTrainer train a prepared model on this rank's shards of pairs.

    Put it before the trainer: ``class MyTrainer(SplitPreferences, DPOTrainer)``. The loss is DPO's
    own, -log sigmoid(β·(the log-ratio of the chosen sample less that of the rejected one))
    (Rafailov et al., arXiv 2305.18290, eq. 7), averaged over pairs. The reference is, in this
    order: the columns ``ref_chosen_logps`` and ``ref_rejected_logps`` of the data; a ``ref_model``
    that ``prepare`` has changed too; the trained model without its adapters.

    Raises:
        ValueError: an option asks for another loss, or a model is not prepared.
    """

    cut = staticmethod(_shard_of_pairs)

    def __init__(self, *given: Any, mesh: Mesh, **options: Any) -> None:
        super().__init__(*given, mesh=mesh, **options)
        self.stored: defaultdict[str, list[float]] = defaultdict(list)
        trainer: Any = self
        for name, valid in _SUPPORTED.items():
            if getattr(trainer.args, name, valid) != valid:
                raise ValueError(
                    f"DPOConfig.{name} is {getattr(trainer.args, name)!r}; valid on a split "
                    f"sequence: {valid!r}"
                )
        if trainer.ref_model is not None and not isinstance(trainer.ref_model, FSDPModule):
            raise ValueError("ref_model is not prepared; valid: odysseus.hf.prepare first")
        if getattr(trainer, "aux_loss_enabled", False):
            raise ValueError(
                "DPOConfig.router_aux_loss_coef is not 0; valid on a split sequence: 0.0"
            )

    @property
    def parts(self) -> int:
        """Into how many parts a step's loss is divided: every rank of a replica has all of it."""
        return self.mesh.replicas

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this replica's part of the mean loss over all pairs of the step."""
        trainer: Any = self
        shard = {name: x for name, x in inputs.items() if name not in _REFERENCE}
        chosen_B, rejected_B = self._log_probs(model, shard)
        chosen_ratio_B, rejected_ratio_B = (
            trained - frozen
            for trained, frozen in zip(
                (chosen_B, rejected_B), self._reference(inputs, shard), strict=True
            )
        )
        margin_B = trainer.beta * (chosen_ratio_B - rejected_ratio_B)
        self._store_metrics(
            {
                "rewards/chosen": trainer.beta * chosen_ratio_B,
                "rewards/rejected": trainer.beta * rejected_ratio_B,
                "rewards/accuracies": (margin_B > 0).float(),
                "rewards/margins": margin_B,
                "logps/chosen": chosen_B,
                "logps/rejected": rejected_B,
            }
        )
        steps = trainer.current_gradient_accumulation_steps if trainer.model.training else 1
        part = -F.logsigmoid(margin_B).mean() / (self.parts * steps)
        return (part, None) if return_outputs else part

    def _log_probs(self, model: Any, shard: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The log-probabilities of the chosen and of the rejected samples, [B] each."""
        return sum_over_ranks(token_log_probs(model, shard).sum(1), self.mesh).chunk(2)

    @torch.no_grad()
    def _reference(self, inputs: Mapping[str, Any], shard: Mapping[str, Any]) -> tuple[Tensor, ...]:
        if _REFERENCE[0] in inputs:
            return tuple(inputs[name] for name in _REFERENCE)
        trainer: Any = self
        if trainer.ref_model is not None:
            return self._log_probs(trainer.ref_model, shard)
        with trainer.model.disable_adapter():
            return self._log_probs(trainer.model, shard)

    def _store_metrics(self, metrics_B: Mapping[str, Tensor]) -> None:
        """Store the means over all pairs of a micro step until they are logged."""
        means = torch.stack([x.detach().double().mean() for x in metrics_B.values()])
        dist.all_reduce(means, group=self.mesh.world.group)
        for name, mean in zip(metrics_B, (means / self.mesh.world.size).tolist(), strict=True):
            self.stored[self._prefix() + name].append(mean)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the means since the last time too, of training or of evaluation, as TRL does."""
        prefix = self._prefix()
        for name in [name for name in self.stored if name.startswith("eval_") == bool(prefix)]:
            logs[name] = fmean(self.stored.pop(name))
        super().log(logs, start_time)  # pyright: ignore[reportAttributeAccessIssue]

    def _prefix(self) -> str:
        trainer: Any = self
        return "" if trainer.model.training else "eval_"
