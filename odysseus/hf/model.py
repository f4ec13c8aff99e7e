"""A run's model built by Transformers, with the run's toggles, for the trainer."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from odysseus.config.run import RunConfig
from odysseus.hf.attention import register
from odysseus.hf.batches import SplitDocuments, sum_of_losses
from odysseus.hf.prepare import prepare
from odysseus.io import checkpoint
from odysseus.io.text import Batch
from odysseus.memory.host_memory import HostMemory
from odysseus.model.varlen import Packing
from odysseus.parallel.mesh import Mesh


def build(run: RunConfig, mesh: Mesh, host: HostMemory) -> PreTrainedModel:
    """Build this rank's shards of a run's model, on the meta device, without values."""
    register(mesh, ring_backend=run.ring_backend, attn_implementation=run.model.attn_implementation)
    values = checkpoint.saved_config(run)
    config = type(AutoConfig.for_model(values["model_type"])).from_dict(values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="ulysses_ring", dtype=run.shard_dtype
        )
    prepare(model, mesh, run, host)
    return model


@torch.no_grad()
def fill_buffers(model: PreTrainedModel) -> None:
    """Compute rotary frequencies, which no checkpoint holds."""
    for module in model.modules():
        if hasattr(module, "original_inv_freq"):
            model._init_weights(module)


def token_losses(model: PreTrainedModel, mesh: Mesh, batch: Batch) -> Tensor:
    """Return the sum of a batch's token losses on this rank, a scalar."""
    unpacked = ((0,),) * len(batch.input_ids)
    starts = unpacked if batch.documents is None else batch.documents.starts
    documents = SplitDocuments(starts, mesh)
    if batch.documents is not None:
        Packing.share(batch.documents, documents)
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        shift_labels=batch.labels,
        documents=documents,
    )
    return sum_of_losses(output, batch.labels)
