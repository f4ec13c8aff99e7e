"""The memory tricks and ZeRO-3 on one Transformers model, in the project's order: tiles,
checkpoint and offload, loss, ZeRO."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from odysseus.config.run import RunConfig
from odysseus.hf import families
from odysseus.hf.attention import NAMES
from odysseus.memory.host_memory import HostMemory
from odysseus.memory.offload import CheckpointOffload
from odysseus.memory.tiling import tiled
from odysseus.model import liger
from odysseus.model.loss import Loss, choose_loss
from odysseus.parallel import zero
from odysseus.parallel.mesh import Mesh

Undo = Callable[[], None]


def check_toggles(run: RunConfig) -> None:
    """Raise ValueError if a run has a toggle that is not for Transformers' models, or a value that
    no toggle has."""
    for name, kind in get_type_hints(RunConfig).items():
        if get_origin(kind) is Literal and getattr(run, name) not in get_args(kind):
            valid = ", ".join(map(str, get_args(kind)))
            raise ValueError(f"{name} is {getattr(run, name)!r}; valid: {valid}")
    refused = [
        ("method", run.method, "ulysses", "ulysses, with ring_parallel_size for a ring"),
        ("model.type", run.model.type, "torch", "torch"),
        ("ulysses_head_chunks", run.ulysses_head_chunks, 1, "1"),
        ("ulysses_all_to_all", run.ulysses_all_to_all, "native", "native"),
        ("compile", run.compile, False, "false"),
    ]
    for name, given, known, valid in refused:
        if given != known:
            raise ValueError(
                f"{name} = {str(given).lower()} is not for models of Transformers; valid: {valid}"
            )
    if run.ring_parallel_size > 1 and run.ring_backend == "yunchang":
        raise ValueError(
            "ring_backend = yunchang is not for models of Transformers; valid: native, allgather"
        )


def prepare(
    model: PreTrainedModel, mesh: Mesh, run: RunConfig, host: HostMemory | None = None
) -> Undo:
    """Apply a run's toggles to a model, and shard its weights over all ranks with ZeRO-3.

    Nothing but this model is changed. Gradients are summed over ranks, as
    :func:`odysseus.hf.loss` needs it.

    Args:
        model: With the same weights on every rank, on the CPU, the device or meta. Its shards keep
            their dtype: load it in fp32 for sums and optimizer states in fp32.
        mesh: This rank's.
        run: Its toggles: ``activation_checkpointing``, ``activation_checkpoint_cpu_offload``,
            ``tiled_mlp_compute``, ``tiled_loss_compute`` (auto: where the sequence is split and the
            model's head is known) and the other ``tiled_loss_*``,
            ``parameter_offload``, ``reduce_bucket_size``, ``zero_prefetch``, ``zero_engine``,
            ``reshard_after_forward``, ``dtype``, ``seq_parallel_communication_data_type``,
            ``host_memory_limit_bytes``.
        host: The account of what goes to host memory; by default one of its own.

    Returns:
        undo(): the model as it was, with whole weights (and gradients), trained as they are by now,
        on every rank.

    Raises:
        ValueError: a toggle is not for this model.
    """
    check_toggles(run)
    if host is None and run.optimizer.offload != "none":
        raise ValueError(
            f"optimizer.offload = {run.optimizer.offload} is the optimizer's to do; valid: none"
        )
    liger.check(run, mesh.device)
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    _check(model, blocks, run)
    changes = _Changes()
    try:
        _apply(changes, model, blocks, mesh, run, host)
    except BaseException:
        changes.undo()
        raise
    return changes.undo


def _apply(
    changes: _Changes,
    model: PreTrainedModel,
    blocks: list[GradientCheckpointingLayer],
    mesh: Mesh,
    run: RunConfig,
    host: HostMemory | None,
) -> None:
    changes.set(model.config, "use_cache", False)
    if run.tiled_mlp_compute:
        for block in blocks:
            mlp = block.mlp
            assert isinstance(mlp, nn.Module)
            changes.set(mlp, "forward", partial(_in_tiles, mlp, mlp.forward))
    if run.recomputes:
        keep: Callable[[Tensor], Any] = nullcontext
        if run.activation_checkpoint_cpu_offload:
            host = host or HostMemory.for_run(run, mesh.device)
            keep = CheckpointOffload(host, mesh.device, len(blocks)).saved_input_hooks
        for block in blocks:
            changes.set(block, "gradient_checkpointing", True)
            changes.set(block, "_gradient_checkpointing_func", partial(_recomputed, keep))
    if _tiles_loss(model, run):
        _compute_loss_in_head(model, choose_loss(run, model.config.vocab_size), changes)
    zero.shard(model, _units(model, blocks), mesh, {}, run)
    changes.undone.append(lambda: zero.unshard(model))
    changes.undone.append(model.register_forward_hook(_let_go).remove)


def _tiles_loss(model: PreTrainedModel, run: RunConfig) -> bool:
    known = model.config.model_type in families.TRICKS
    return run.tiles_loss and (known or run.tiled_loss_compute is True)


def _let_go(model: nn.Module, *_: Any) -> None:
    """Without a backward to come, nothing else frees the weights that stay gathered for it."""
    if not torch.is_grad_enabled():
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _check(
    model: PreTrainedModel, blocks: list[GradientCheckpointingLayer], run: RunConfig
) -> None:
    of, family = type(model).__name__, model.config.model_type
    if isinstance(model, FSDPModule):
        raise ValueError(f"{of} is sharded already; valid: undo() first")
    families.check(model.config, of)
    attention = model.config._attn_implementation
    if attention not in NAMES and run.shards > 1:
        raise ValueError(
            f"{of} was made with attn_implementation = {attention}, which knows nothing of other "
            f"ranks' tokens; valid: {', '.join(NAMES)}"
        )
    if not isinstance(model.get_output_embeddings(), nn.Linear) or not blocks:
        raise ValueError(f"{of} has no blocks or no linear head; valid: a causal language model")
    for name, asked in (
        ("tiled_mlp", run.tiled_mlp_compute),
        ("tiled_loss", run.tiled_loss_compute is True),
    ):
        if asked and family not in families.TRICKS:
            raise ValueError(
                f"{name}_compute = true is not known to be right for {of}; valid: false, or a "
                f"model of {', '.join(families.TRICKS)}"
            )
    if run.recomputes and not model.training:
        raise ValueError(
            f"{of} is in eval mode, in which Transformers recomputes nothing; valid: model.train()"
        )
    if run.recomputes or run.tiled_mlp_compute:
        families.check_dropout([*blocks], of)


class _Changes:
    """Attributes set on objects, and how each was before."""

    def __init__(self) -> None:
        self.undone: list[Undo] = []

    def set(self, of: Any, name: str, value: Any) -> None:
        before = vars(of).get(name, self)
        back = partial(delattr, of, name) if before is self else partial(setattr, of, name, before)
        self.undone.append(back)
        setattr(of, name, value)

    def undo(self) -> None:
        while self.undone:
            self.undone.pop()()


def _in_tiles(mlp: nn.Module, forward: Callable[[Tensor], Tensor], x_BSD: Tensor) -> Tensor:
    return tiled(forward, mlp.parameters(), x_BSD)


def _recomputed(
    keep: Callable[[Tensor], Any], function: Callable[..., Any], x_BSD: Tensor, *others: Any
) -> Any:
    with keep(x_BSD):
        return checkpoint(function, x_BSD, *others, use_reentrant=False, preserve_rng_state=False)


def _compute_loss_in_head(model: PreTrainedModel, loss: Loss, changes: _Changes) -> None:
    """Have the head return the sum of token losses in place of the logits."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module), "a causal language model has one"
    labels: list[Tensor] = []

    def remember(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if "shift_labels" not in kwargs:
            raise ValueError(
                "the loss is computed in tiles, and the model was not given shift_labels; valid: "
                "batches of odysseus.hf.shard_batch"
            )
        labels[:] = [kwargs["shift_labels"]]

    def loss_of_shard(x_BSD: Tensor) -> Tensor:
        weight = head.weight
        assert isinstance(weight, Tensor)
        return loss(x_BSD.flatten(0, 1), weight, labels.pop().flatten())

    changes.undone.append(model.register_forward_pre_hook(remember, with_kwargs=True).remove)
    changes.set(head, "forward", loss_of_shard)


def _units(model: PreTrainedModel, blocks: list[GradientCheckpointingLayer]) -> zero.Units:
    norm = getattr(model.base_model, "norm", None)
    last = [part for part in (norm, model.get_output_embeddings()) if part is not None]
    return zero.Units(model.get_input_embeddings(), blocks, last)
