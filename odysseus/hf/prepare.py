"""The memory tricks and ZeRO-3 on one Transformers model.

They apply in the project's order: tiles, checkpoint and offload, loss, ZeRO.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from odysseus.config.run import RunConfig
from odysseus.hf import experts, families, head, rotary
from odysseus.hf.attention import NAMES
from odysseus.hf.changes import Changes, Undo
from odysseus.memory.host_memory import HostMemory
from odysseus.memory.offload import CheckpointOffload
from odysseus.memory.tiling import tiled
from odysseus.model import liger
from odysseus.model.decoder import saved_as_usual
from odysseus.parallel import zero
from odysseus.parallel.mesh import Mesh


def check_toggles(run: RunConfig) -> None:
    """Raise ValueError if a run's toggle or its value is not valid for Transformers' models."""
    for name, kind in get_type_hints(RunConfig).items():
        if get_origin(kind) is Literal and getattr(run, name) not in get_args(kind):
            valid = ", ".join(map(str, get_args(kind)))
            raise ValueError(f"{name} is {getattr(run, name)!r}; valid: {valid}")
    refused = [
        ("method", run.method, "ulysses", "ulysses, with ring_parallel_size for a ring"),
        ("model.type", run.model.type, "torch", "torch"),
        ("ulysses_head_chunks", run.ulysses_head_chunks, 1, "1"),
        ("ulysses_all_to_all", run.ulysses_all_to_all, "native", "native"),
        ("vocab_parallel", run.vocab_parallel, False, "false"),
        ("tensor_parallel_size", run.tensor_parallel_size, 1, "1"),
        ("compile", run.compile, False, "false"),
    ]
    for name, given, supported, valid in refused:
        if given != supported:
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

    Only this model is changed. Gradients are summed over ranks, which :func:`odysseus.hf.loss`
    needs.

    Args:
        model: A model with the same weights on every rank, on the CPU, the device or meta. Shards
            keep the weights' dtype: load it in fp32 for sums and optimizer states in fp32.
        mesh: The mesh that this rank belongs to.
        run: A run whose toggles are applied: ``activation_checkpointing``,
            ``activation_checkpoint_cpu_offload``, ``tiled_mlp_compute``, ``tiled_loss_compute``
            (auto: on if the sequence is split and the model's head is known) and the other
            ``tiled_loss_*``, ``parameter_offload``, ``reduce_bucket_size``, ``zero_prefetch``,
            ``zero_engine``, ``reshard_after_forward``, ``dtype``,
            ``seq_parallel_communication_data_type``, ``host_memory_limit_bytes``.
        host: The account of what goes to host memory; by default a new one.

    Returns:
        undo(), which restores the model: whole weights and gradients on every rank, with their
        trained values.

    Raises:
        ValueError: a toggle is not valid for this model.
    """
    check_toggles(run)
    if host is None and run.optimizer.offload != "none":
        raise ValueError(
            f"optimizer.offload = {run.optimizer.offload} is the optimizer's to do; valid: none"
        )
    liger.check(run, mesh.device)
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    _check(model, blocks, run)
    changes = Changes()
    try:
        _apply(changes, model, blocks, mesh, run, host)
    except BaseException:
        changes.undo()
        raise
    return changes.undo


def _apply(
    changes: Changes,
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
            changes.set(mlp, "forward", partial(_tiled_forward, mlp, mlp.forward))
    if run.recomputes:
        saved_input_hooks: Callable[[int, Tensor], Any] = saved_as_usual
        if run.activation_checkpoint_cpu_offload:
            host = host or HostMemory.for_run(run, mesh.device)
            offload = CheckpointOffload(host, mesh.device, len(blocks))
            saved_input_hooks = offload.saved_input_hooks
        for index, block in enumerate(blocks):
            function = partial(_checkpointed, partial(saved_input_hooks, index))
            changes.set(block, "gradient_checkpointing", True)
            changes.set(block, "_gradient_checkpointing_func", function)
            check = partial(_check_checkpointing, function)
            changes.undos.append(block.register_forward_pre_hook(check).remove)
    if head.tiles_loss(model, run):
        head.compute_loss(model, run, changes)
    rotary.use_longest(model, changes)
    zero.shard(model, _units(model, blocks), mesh, {}, run)
    changes.undos.append(lambda: zero.unshard(model))
    changes.undos.append(
        model.register_forward_pre_hook(lambda *_: zero.follow_frozen(model), prepend=True).remove
    )
    changes.undos.append(model.register_forward_hook(_reshard_without_grad).remove)
    experts.balance_over_ranks(model, changes, mesh)


def _check_checkpointing(function: Callable[..., Any], block: Any, _: Any) -> None:
    """Raise ValueError if a block no longer recomputes as :func:`prepare` has set it."""
    if block._gradient_checkpointing_func is not function:
        raise ValueError(
            "gradient_checkpointing_enable() or _disable() was called after prepare, which had set "
            "how blocks recompute; valid: neither, or activation_checkpointing = false"
        )


def _reshard_without_grad(model: nn.Module, *_: Any) -> None:
    """Free gathered weights after a forward without gradients, because no backward will."""
    if not torch.is_grad_enabled():
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _check(
    model: PreTrainedModel, blocks: list[GradientCheckpointingLayer], run: RunConfig
) -> None:
    name, family = type(model).__name__, model.config.model_type
    if isinstance(model, FSDPModule):
        raise ValueError(f"{name} is sharded already; valid: undo() first")
    families.check(model.config, name)
    attention = model.config._attn_implementation
    if attention not in NAMES and (run.shards > 1 or family in families.SEES_ACROSS_DOCUMENTS):
        raise ValueError(
            f"{name} was made with attn_implementation = {attention}, which does not see other "
            "ranks' tokens, or sees across packed documents; valid: "
            f"{', '.join(NAMES)}"
        )
    if not isinstance(model.get_output_embeddings(), nn.Module) or not blocks:
        raise ValueError(f"{name} has no blocks or no head; valid: a causal language model")
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if len(dtypes) > 1:
        raise ValueError(
            f"{name} trains parameters of {' and '.join(sorted(map(str, dtypes)))}, whose "
            "gradients ZeRO-3 cannot reduce together; valid: one dtype, such as model.float()"
        )
    for toggle, asked, known in (
        ("tiled_mlp", run.tiled_mlp_compute, families.TRICKS),
        ("tiled_loss", run.tiled_loss_compute is True, families.TILED_LOSS),
    ):
        if asked and family not in known:
            raise ValueError(
                f"{toggle}_compute = true is not known to be right for {name}; valid: false, or a "
                f"model of {', '.join(known)}"
            )
    head.check(model, run)
    if run.recomputes and not model.training:
        raise ValueError(
            f"{name} is in eval mode, in which Transformers does not recompute; valid: "
            "model.train()"
        )
    if run.recomputes or run.tiled_mlp_compute:
        families.check_dropout([*blocks], name)


def _tiled_forward(mlp: nn.Module, forward: Callable[[Tensor], Tensor], x_BSD: Tensor) -> Tensor:
    return tiled(forward, mlp.parameters(), x_BSD)


def _checkpointed(
    saved_input_hooks: Callable[[Tensor], Any],
    function: Callable[..., Any],
    x_BSD: Tensor,
    *others: Any,
) -> Any:
    with saved_input_hooks(x_BSD):
        return checkpoint(function, x_BSD, *others, use_reentrant=False, preserve_rng_state=False)


def _units(model: PreTrainedModel, blocks: list[GradientCheckpointingLayer]) -> zero.Units:
    inner: Any = model
    if hasattr(inner, "get_base_model"):  # a model with PEFT's adapters
        inner = inner.get_base_model()
    norm = getattr(inner.base_model, "norm", None)
    last = [part for part in (norm, model.get_output_embeddings()) if part is not None]
    return zero.Units(model.get_input_embeddings(), blocks, last)
