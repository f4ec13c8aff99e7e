"""ZeRO-3 for whatever a method leaves replicated, with PyTorch's fully_shard (FSDP2).

A weight that the method cuts is sharded over the replicas and the ring, every other one over all
ranks (rule 3 of docs/architecture.md): no parameter, gradient or optimizer state is held twice
(but for kv heads fewer than ranks, whose copies Megatron-style methods need). Units: the
embedding, each block, and the head with its norm. Gradients are summed, never averaged. Where a
method cuts all of a block but its norms, those of all blocks are one unit more, gathered once and
held: some thousand numbers a block, for which three collectives a block would wait.

Where there is neither replica nor ring, a cut weight is one rank's own. FSDP2 would copy it all the
same, to gather it and to reduce its gradient; it is used where it lies if its dtype is computed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed import _composable_state
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import DTensor, Shard

from odysseus.config.run import RunConfig
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.sharding import PACKED
from odysseus.parallel.zero_buckets import reduce_in_buckets
from odysseus.parallel.zero_overlap import overlap


@dataclass(frozen=True)
class Units:
    """What is gathered and freed together: the embedding, each block, and what follows the last.

    Attributes:
        embedding: None where there are blocks alone.
        last: The norm, if it is known, and the head; empty where there are blocks alone.
    """

    embedding: nn.Module | None
    blocks: Iterable[nn.Module]
    last: list[nn.Module]


def is_cut(parameter: str, split: Mapping[str, int]) -> bool:
    """Whether a method's split cuts this parameter (by its name in this project's model)."""
    stem, _, kind = parameter.rpartition(".")
    parent, _, leaf = stem.rpartition(".")
    module = parent.rpartition(".")[2]
    dims = {split.get(f"{module}.{part}") for part in PACKED.get(leaf, (leaf,))}
    return 0 in dims or (1 in dims and kind == "weight")


def shard(
    model: nn.Module, units: Units, mesh: Mesh, split: Mapping[str, int], run: RunConfig
) -> None:
    """Turn a model into this rank's shards of it; one on the meta device stays there.

    Parameters are gathered in the run's compute dtype, gradients summed in its reduction dtype;
    shards keep the dtype they have.
    """
    cut = {p for name, p in model.named_parameters() if is_cut(name, split)}
    if mesh.sequence.size == 1:
        cut = set()  # Nothing is cut, and both meshes would be the same ranks.
    own = mesh.uncut_mesh.size() == 1 and run.parameter_offload == "none"
    in_place = cut if own and run.compute_dtype == run.master_dtype else set()
    full = FSDPMeshInfo(mesh.full_mesh, shard_mesh_dim=0)
    uncut = FSDPMeshInfo(mesh.uncut_mesh, shard_mesh_dim=0)

    def placement(parameter: nn.Parameter) -> ShardPlacementResult:
        return ShardPlacementResult(Shard(0), uncut if parameter in cut else full)

    policy = MixedPrecisionPolicy(
        param_dtype=run.compute_dtype, reduce_dtype=run.reduce_dtype, cast_forward_inputs=False
    )
    offload = OffloadPolicy()
    if run.parameter_offload == "cpu":
        offload = CPUOffloadPolicy(pin_memory=mesh.device.type != "cpu")

    blocks = list(units.blocks)
    norms = _alone(blocks, cut)

    def unit(
        module: nn.Module | list[nn.Module],
        reshard_after_forward: bool,
        ignored: set[nn.Parameter] = in_place,
    ) -> None:
        fully_shard(
            module,  # pyright: ignore[reportArgumentType, reportCallIssue]
            mesh=mesh.full_mesh,
            mp_policy=policy,
            offload_policy=offload,
            reshard_after_forward=reshard_after_forward,
            shard_placement_fn=placement,
            ignored_params=ignored,
        )

    first, last = [] if units.embedding is None else [units.embedding], units.last
    tied = bool(first) and last[-1].weight is first[0].weight
    # The root's unit has the norms, and what no other has. It is the first, as FSDP2 looks for no
    # weights inside of other units.
    theirs = {p for module in (*first, *blocks, *last) for p in module.parameters()}
    theirs -= {norm.get_parameter("weight") for norm in norms}
    unit(model, reshard_after_forward=False, ignored=theirs)
    in_root = {norm.get_parameter("weight") for norm in norms}  # which are other objects now
    for block in blocks:
        # Backward needs the last one's weights at once: the overlapping engine keeps them.
        kept = run.zero_engine == "overlap" and block is blocks[-1]
        freed = run.reshard_after_forward and not kept
        unit(block, reshard_after_forward=freed, ignored=in_place | in_root)
    # The head's backward follows its forward at once, so its weights stay gathered between.
    if last:
        unit([*first, *last] if tied else last, reshard_after_forward=False)
    if first and not tied:
        unit(first[0], reshard_after_forward=True)
        # The gradient of a lookup does not read the table: no second all-gather.
        first[0].set_unshard_in_backward(False)  # pyright: ignore[reportCallIssue]
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            groups = module._get_fsdp_state()._fsdp_param_groups
            for group in groups:
                if group.mesh_info.mesh.size() == 1:
                    group.gradient_divide_factor = None  # 1.0 would cost a copy, divided by it
            if not run.zero_prefetch:
                _gather_when_needed(module)
            if run.reduce_bucket_size:
                for group in groups:
                    reduce_in_buckets(group, run.reduce_bucket_size, run.compute_dtype)
    if run.zero_engine == "overlap":
        overlap(model, [*first, *blocks, *([] if tied else last[:1])])


def _alone(blocks: list[nn.Module], cut: set[nn.Parameter]) -> list[nn.Module]:
    """The blocks' norms, if a method cuts all else of them."""
    found = [
        (name, module)
        for block in blocks
        for name, module in block.named_modules()
        if set(module.parameters(recurse=False)) - cut
    ]
    return [norm for _, norm in found] if all(n.endswith("norm") for n, _ in found) else []


def _gather_when_needed(unit: FSDPModule) -> None:
    """FSDP2 prefetches on its own: in forward by gathering on a stream that does not wait for what
    computes, in backward by asking for the next unit's weights early. Neither here."""
    unit._set_unshard_async_op(True)  # on the current stream, in order
    unit.set_modules_to_backward_prefetch([unit])  # whose weights are there by then


@torch.no_grad()
def unshard(model: nn.Module) -> None:
    """Undo :func:`shard`: plain modules with whole weights and gradients, on every rank.

    FSDP2 has no way back, so what it has left on the modules is removed by hand.
    """
    whole: dict[nn.Parameter, nn.Parameter] = {}
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.reshard()
        state = module._get_fsdp_state()
        handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
        for group in state._fsdp_param_groups:
            handles += group._module_to_pre_save_state_dict_hook_handle.values()
            handles += group._module_to_pre_load_state_dict_hook_handle.values()
            handles += [parameter._post_load_hook_handle for parameter in group.fsdp_params]
        for handle in handles:
            handle.remove()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in whole:
                whole[parameter] = nn.Parameter(_whole(parameter), parameter.requires_grad)
                if parameter.grad is not None:
                    whole[parameter].grad = _whole(parameter.grad)
            setattr(module, name, whole[parameter])
        for name in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            module.__dict__.pop(name, None)
    for module in sharded:
        module.__class__ = type(module).__bases__[1]
        for key in (STATE_KEY, REGISTRY_KEY):
            module.__dict__.pop(key, None)
        _composable_state._module_state_mapping.pop(module, None)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    # Shards in host memory are gathered where the ranks talk.
    moved = tensor.to(tensor.device_mesh.device_type)
    assert isinstance(moved, DTensor)
    return moved.full_tensor().to(tensor.device)
