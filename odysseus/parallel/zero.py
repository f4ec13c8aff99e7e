"""ZeRO-3 for the weights that a method leaves replicated, with PyTorch's fully_shard (FSDP2).

A weight that the method cuts is sharded over all axes but the one that cuts it, experts over the
ranks that have the same ones, every other weight over all ranks (rule 3 of docs/architecture.md).
No parameter, gradient or optimizer state exists twice, with one exception: with fewer kv heads than
ranks, Megatron-style methods need copies of kv heads.

Units: the embedding, each block, and the head with its norm. Gradients are summed, never averaged.
Where a method cuts all of a block but its norms, the norms of all blocks are one more unit, which
is gathered once and kept: a few thousand numbers per block are not worth three collectives each.

Where there is no other axis, each cut weight is on one rank only. FSDP2 would still copy it to
gather it and to reduce its gradient. It is used in place if the master dtype is the compute dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from odysseus.config.run import RunConfig
from odysseus.parallel import fsdp_internals
from odysseus.parallel.cuts import BY_EXPERT
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.sharding import cut_of
from odysseus.parallel.zero_buckets import reduce_in_buckets
from odysseus.parallel.zero_overlap import overlap


@dataclass(frozen=True)
class Units:
    """Modules that are gathered and freed together: the embedding, each block, and the output.

    Attributes:
        embedding: None in a model of blocks alone.
        output: The last norm, if it is known, and the head; empty in a model of blocks alone.
    """

    embedding: nn.Module | None
    blocks: Iterable[nn.Module]
    output: list[nn.Module]

    @property
    def tied(self) -> bool:
        """Whether the embedding and the head share one weight, and therefore one unit."""
        return self.embedding is not None and self.output[-1].weight is self.embedding.weight


def shard(
    model: nn.Module, units: Units, mesh: Mesh, split: Mapping[str, int], run: RunConfig
) -> None:
    """Turn a model into this rank's shards of it; a model on the meta device stays there.

    Parameters are gathered in the run's compute dtype, gradients summed in its reduction dtype.
    Shards keep the dtype of the parameters; their gradients have the master dtype.

    Args:
        split: The run's cuts (:meth:`odysseus.method.Method.cuts`).
    """
    tied = units.tied
    _wrap_units(model, units, _cut_parameters(model, mesh, split), mesh, run)
    _set_reductions(model, run)
    if not run.zero_prefetch:
        _gather_when_needed(model)
    if run.zero_engine == "overlap":
        first = [] if units.embedding is None else [units.embedding]
        overlap(model, [*first, *units.blocks, *([] if tied else units.output[:1])])


Cut = Mapping[nn.Parameter, DeviceMesh]
"""The parameters that the method cuts, and the ranks that have the same part of each."""


def _cut_parameters(model: nn.Module, mesh: Mesh, split: Mapping[str, int]) -> Cut:
    cut = {}
    for name, parameter in model.named_parameters():
        dimension = cut_of(name, split)
        if dimension == BY_EXPERT and mesh.experts is not None and mesh.experts.size > 1:
            assert mesh.same_experts_mesh is not None
            cut[parameter] = mesh.same_experts_mesh
        elif dimension not in (None, BY_EXPERT) and mesh.tensor.size > 1:
            cut[parameter] = mesh.uncut_mesh
    return cut


def _used_in_place(cut: Cut, run: RunConfig) -> set[nn.Parameter]:
    """The cut parameters that FSDP2 leaves alone: on one rank each, with gradients as they are."""
    if run.parameter_offload != "none" or run.compute_dtype != run.master_dtype:
        return set()
    return {parameter for parameter, mesh in cut.items() if mesh.size() == 1}


def _options(cut: Cut, mesh: Mesh, run: RunConfig) -> dict[str, Any]:
    """The arguments of fully_shard that all units share."""
    full = fsdp_internals.rows_over(mesh.full_mesh)
    over = {owners: fsdp_internals.rows_over(owners) for owners in cut.values()}
    offload = OffloadPolicy()
    if run.parameter_offload == "cpu":
        offload = CPUOffloadPolicy(pin_memory=mesh.device.type != "cpu")
    return {
        "mesh": mesh.full_mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=run.compute_dtype, reduce_dtype=run.reduce_dtype, cast_forward_inputs=False
        ),
        "offload_policy": offload,
        "shard_placement_fn": lambda p: over[cut[p]] if p in cut else full,
    }


def _wrap_units(model: nn.Module, units: Units, cut: Cut, mesh: Mesh, run: RunConfig) -> None:
    """Wrap the root with the lone norms, then each block, then the output, then the embedding."""
    wrap = partial(fully_shard, **_options(cut, mesh, run))
    in_place = _used_in_place(cut, run)
    blocks, output, tied = list(units.blocks), units.output, units.tied
    embedding = [] if units.embedding is None else [units.embedding]

    # The root has the lone norms, and weights that no other unit has. It is wrapped first, because
    # FSDP2 does not look for weights inside other units.
    norms = _lone_norms(blocks, cut)
    of_others = {p for module in (*embedding, *blocks, *output) for p in module.parameters()}
    of_others -= {norm.get_parameter("weight") for norm in norms}
    wrap(model, reshard_after_forward=False, ignored_params=of_others)

    # The root's wrapping has replaced the norms' parameters by new objects.
    in_root = {norm.get_parameter("weight") for norm in norms}
    for block in blocks:
        # Backward needs the last block's weights at once: the overlapping engine keeps them.
        kept = run.zero_engine == "overlap" and block is blocks[-1]
        wrap(
            block,
            reshard_after_forward=run.reshard_after_forward and not kept,
            ignored_params=in_place | in_root,
        )

    # The head's backward follows its forward at once, so its weights stay gathered between.
    if output:
        modules = [*embedding, *output] if tied else output
        wrap(modules, reshard_after_forward=False, ignored_params=in_place)  # pyrefly: ignore
    if embedding and not tied:
        table = wrap(embedding[0], reshard_after_forward=True, ignored_params=in_place)
        # The gradient of a lookup does not read the table: no second all-gather.
        table.set_unshard_in_backward(False)


def _lone_norms(blocks: list[nn.Module], cut: Cut) -> list[nn.Module]:
    """The norms of all blocks, if the method cuts every other parameter of the blocks."""
    uncut = [
        (name, module)
        for block in blocks
        for name, module in block.named_modules()
        if set(module.parameters(recurse=False)) - cut.keys()
    ]
    return [m for _, m in uncut] if all(name.endswith("norm") for name, _ in uncut) else []


def _sharded_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _set_reductions(model: nn.Module, run: RunConfig) -> None:
    """Sum gradients instead of averaging them; in buckets, or into another dtype than the shards',
    if the run says so."""
    for unit in _sharded_modules(model):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        for group in fsdp_internals.parameter_groups(unit):
            if fsdp_internals.ranks_of(group) == 1:
                fsdp_internals.disable_division(group)
            if run.shard_dtype != run.master_dtype:
                fsdp_internals.reduce_into(group, run.master_dtype)
            if run.reduce_bucket_size:
                reduce_in_buckets(group, run.reduce_bucket_size, run.compute_dtype)


def _gather_when_needed(model: nn.Module) -> None:
    """Undo FSDP2's own prefetching.

    In forward it gathers on a stream that does not wait for the computation. In backward it asks
    for the next unit's weights early; a unit that names itself has its own weights by then.
    """
    for unit in _sharded_modules(model):
        fsdp_internals.gather_on_current_stream(unit)
        unit.set_modules_to_backward_prefetch([unit])


def follow_frozen(model: nn.Module) -> None:
    """Let parameters that were frozen or unfrozen since the last forward count as they are now."""
    for unit in _sharded_modules(model):
        for group in fsdp_internals.parameter_groups(unit):
            fsdp_internals.follow_frozen(group)


@torch.no_grad()
def unshard(model: nn.Module) -> None:
    """Undo :func:`shard`: plain modules with whole weights and gradients, on every rank."""
    for module in _sharded_modules(model):
        module.reshard()
    whole: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in whole:
                whole[parameter] = nn.Parameter(_whole(parameter), parameter.requires_grad)
                if parameter.grad is not None:
                    whole[parameter].grad = _whole(parameter.grad)
            setattr(module, name, whole[parameter])
    fsdp_internals.remove_fsdp(model)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor of a shard, on the shard's device."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    # Shards in host memory are gathered on the device where the ranks communicate.
    moved = tensor.to(tensor.device_mesh.device_type)
    assert isinstance(moved, DTensor)
    return moved.full_tensor().to(tensor.device)
