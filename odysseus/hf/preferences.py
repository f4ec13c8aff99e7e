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


def _shard_of_pairs(
    collate: Callable[[Any], Any], mesh: Mesh, samples: list[Any]
) -> dict[str, Any]:
    """Collate pairs, chosen before rejected, pad them, and cut this rank's shard out."""
    batch = dict(collate(samples))
    prompt = batch.pop("completion_mask") == 0
    batch["labels"] = batch["input_ids"].masked_fill(prompt, IGNORED_LABEL)
    return shard_batch(padded(batch, mesh), mesh)


class SplitPreferences(SplitSamples):
    """Makes TRL's DPOTrainer train a prepared model on this rank's shards of pairs.

    Put it before the trainer: ``class MyTrainer(SplitPreferences, DPOTrainer)``. The loss is DPO's
    own, -log sigmoid(β·(the log-ratio of the chosen sample less that of the rejected one))
    (Rafailov et al., arXiv 2305.18290, eq. 7), averaged over pairs. ``prepare`` must have changed
    the reference, ``ref_model``, too.

    Raises:
        ValueError: an option asks for another loss, or a model is not prepared.
    """

    cut = staticmethod(_shard_of_pairs)
    valid: Mapping[str, Any] = {
        "loss_type": ["sigmoid"],
        "loss_weights": None,
        "f_divergence_type": "reverse_kl",
        "ld_alpha": None,
        "use_weighting": False,
        "precompute_ref_log_probs": False,
        "sync_ref_model": False,
        "neftune_noise_alpha": None,
    }

    def __init__(self, *given: Any, mesh: Mesh, **options: Any) -> None:
        reference = options.get("ref_model", dict(enumerate(given)).get(1))
        if not isinstance(reference, FSDPModule):
            raise ValueError(
                "ref_model is not prepared; valid: odysseus.hf.prepare first. (TRL would make a "
                "reference itself, or copy adapters, which a sharded model cannot have)"
            )
        super().__init__(*given, mesh=mesh, **options)
        self.stored: defaultdict[str, list[float]] = defaultdict(list)
        trainer: Any = self
        if trainer.aux_loss_enabled:
            raise ValueError(
                f"router_aux_loss_coef is {trainer.router_aux_loss_coef}; valid in DPOConfig on a "
                "split sequence: 0.0"
            )

    @property
    def parts(self) -> int:
        """Number of parts that a step's loss is the sum of: a replica's ranks have the same one."""
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
        chosen_B, rejected_B = self._log_probs(model, inputs)
        with torch.no_grad():
            of_reference = self._log_probs(trainer.ref_model, inputs)
        chosen_ratio_B, rejected_ratio_B = chosen_B - of_reference[0], rejected_B - of_reference[1]
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
        """Return the log-probabilities of the chosen and of the rejected samples, [B] each."""
        return sum_over_ranks(token_log_probs(model, shard).sum(1), self.mesh).chunk(2)

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
        super().log(logs, start_time)  # pyrefly: ignore

    def _prefix(self) -> str:
        trainer: Any = self
        return "" if trainer.model.training else "eval_"
