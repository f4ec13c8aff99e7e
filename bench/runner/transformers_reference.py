"""Plain Transformers in one process as verify's reference: its model, attention, loss and AdamW.

Of this project it takes the samples, and the initial weights of a model without a checkpoint. So a
fault in this project's kernels, reductions or optimizer cannot be in both trainings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.runner import worker
from odysseus.config.run import RunConfig
from odysseus.io import checkpoint
from odysseus.io.text import Batch, Samples
from odysseus.model.loss import IGNORED_LABEL
from odysseus.parallel.sharding import Piece, huggingface_shapes, initialize


def one_process(run: RunConfig) -> RunConfig:
    """The training of a data-parallel run on one rank, which reads the same samples per step."""
    steps = run.gradient_accumulation_steps * run.data_parallel_size
    return replace(run, world_size=1, gradient_accumulation_steps=steps)


def history(run: RunConfig) -> dict[str, Any]:
    """Train in this process. Return loss and gradient norm of every step.

    In fp64 the norms of Transformers, which round to fp32, are replaced by PyTorch's.
    """
    with worker.process_group(run) as device:
        model = _model(run).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=run.optimizer.learning_rate)
        samples = Samples(run, 0, 0, device)
        losses, norms = [], []
        for step in range(run.steps):
            losses.append(_accumulate(model, samples.step(step), run))
            square = sum(p.grad.double().square().sum() for p in model.parameters())
            norms.append(torch.as_tensor(square).sqrt().item())
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": losses, "grad_norm": norms}


def _model(run: RunConfig) -> Any:
    """Build the model as its users would, with the run's initial weights."""
    from transformers import AutoConfig, AutoModelForCausalLM  # takes seconds

    options: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": run.master_dtype}
    if run.model.checkpoint and not run.model.overrides:
        model = AutoModelForCausalLM.from_pretrained(run.model.checkpoint, **options)
    else:
        values = checkpoint.saved_config(run)
        config = type(AutoConfig.for_model(values["model_type"])).from_dict(values)
        model = AutoModelForCausalLM.from_config(config, **options)
        _fill(model, run)
    if run.master_dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = _Norm(module)
    return model.train()


@torch.no_grad()
def _fill(model: nn.Module, run: RunConfig) -> None:
    """Give a model the weights that a run's seed decides."""
    shapes = huggingface_shapes(run.architecture)
    for name, parameter in model.named_parameters():
        shape = shapes[name]
        columns = (0, shape[1]) if len(shape) == 2 else (0, 1)
        initialize([(Piece(name, shape, (0, shape[0]), columns), parameter)], run.seed)


class _Norm:
    """RMSNorm in the dtype of its input."""

    def __init__(self, module: Any) -> None:
        self.weight, self.eps = module.weight, module.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def _accumulate(model: nn.Module, batches: list[Batch], run: RunConfig) -> float:
    """Accumulate a step's gradients; return its mean token loss."""
    tokens = sum(int((batch.labels != IGNORED_LABEL).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        with torch.autocast(
            batch.labels.device.type, run.compute_dtype, enabled=run.dtype == "bf16"
        ):
            logits = model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
            ).logits
        wide = torch.promote_types(logits.dtype, torch.float32)
        summed = F.cross_entropy(
            logits.flatten(0, 1).to(wide), batch.labels.flatten(), reduction="sum"
        )
        loss = summed / tokens
        loss.backward()
        total += loss.item()
    return total
