"""Every private name of PyTorch that odysseus uses, behind functions named for what they do.

FSDP2's public interface cannot shard weights of one unit over different meshes and give each group
its own reduce-scatter, and it cannot be taken off a model. When PyTorch changes, this file is the
one to change. In tests/odysseus/parallel/, `test_private_names.py` looks for each name, and
`test_fsdp_internals.py` runs each function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import _composable_state, distributed_c10d
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import Shard

__all__ = [
    "FSDPParamGroup",
    "ReduceScatter",
    "ShardPlacementResult",
    "call_after_backward",
    "disable_division",
    "flatten_mesh",
    "follow_frozen",
    "gather_on_current_stream",
    "has_gradient_hooks",
    "is_reduced_first",
    "parameter_groups",
    "ranks_of",
    "reduce_into",
    "remove_fsdp",
    "rows_over",
    "set_reduce_scatter",
    "sharded_parameters",
    "timeout_of",
]


@contextmanager
def timeout_of(world: dist.ProcessGroup, device: torch.device) -> Iterator[None]:
    """Give the process groups that are made inside the timeout of this one.

    By itself PyTorch gives a new group 10 minutes with NCCL, 30 with gloo. NCCL counts them from
    the moment when the host issues a collective, and a step is issued long before it ends.
    """
    earlier = {*distributed_c10d._world.pg_map}
    yield
    if dist.get_backend(world) != "fake":  # that of a dry run
        timeout = world._get_backend(device).options._timeout
        for group in distributed_c10d._world.pg_map.keys() - earlier:
            distributed_c10d._set_pg_timeout(timeout, group)


def flatten_mesh(mesh: DeviceMesh, name: str) -> DeviceMesh:
    """The ranks of a mesh as a one-dimensional mesh of this name."""
    return mesh._flatten(name)


def rows_over(mesh: DeviceMesh) -> ShardPlacementResult:
    """A result of fully_shard's `shard_placement_fn`: shard the parameter's rows over this mesh.

    Make one per one-dimensional mesh: FSDP2 groups a unit's parameters by it.
    """
    return ShardPlacementResult(Shard(0), FSDPMeshInfo(mesh, shard_mesh_dim=0))


def parameter_groups(unit: FSDPModule) -> list[FSDPParamGroup]:
    """A unit's parameters in groups, one per mesh that they are sharded over."""
    return unit._get_fsdp_state()._fsdp_param_groups


def ranks_of(group: FSDPParamGroup) -> int:
    """Number of ranks that a group is sharded over."""
    return group.mesh_info.mesh.size()


def sharded_parameters(group: FSDPParamGroup) -> list[nn.Parameter]:
    """A group's parameters as this rank keeps them: DTensors, sharded."""
    return [parameter.sharded_param for parameter in group.fsdp_params]


def is_reduced_first(group: FSDPParamGroup) -> bool:
    """Whether backward reduces this group before the other groups of its unit."""
    return group._param_group_index == group._num_param_groups - 1


def set_reduce_scatter(group: FSDPParamGroup, reduce_scatter: ReduceScatter) -> None:
    """Have a group reduce its gradients with this function.

    FSDPModule.set_custom_reduce_scatter refuses units of several groups.
    """
    group._reduce_scatter_comm = reduce_scatter


def disable_division(group: FSDPParamGroup) -> None:
    """Leave a group's gradients undivided; a division factor of 1.0 would cost a copy."""
    group.gradient_divide_factor = None


def gather_on_current_stream(unit: FSDPModule) -> None:
    """Have a unit gather its weights in order with the computation, not on a stream of its own."""
    unit._set_unshard_async_op(True)


def follow_frozen(group: FSDPParamGroup) -> None:
    """Have a group see which of its parameters are trained now.

    FSDP2 reads that at the first forward; a group that was frozen then could never be trained.
    """
    group._init_mp_dtypes()


def reduce_into(group: FSDPParamGroup, dtype: torch.dtype) -> None:
    """Have a group's reduced gradients in this dtype, also if its parameters have another one.

    The parameters need this dtype as their ``grad_dtype``.
    """
    read_dtypes = group._init_mp_dtypes

    def read_dtypes_but_one() -> None:
        read_dtypes()
        group._orig_dtype = dtype if group._orig_dtype is not None else None

    group._init_mp_dtypes = read_dtypes_but_one


def has_gradient_hooks(parameter: nn.Parameter) -> bool:
    """Whether something takes the parameter's gradient as soon as FSDP2 has reduced it."""
    return bool(parameter._post_accumulate_grad_hooks)


def call_after_backward(function: Callable[[], None]) -> None:
    """Call a function when the backward that is running ends."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def remove_fsdp(model: nn.Module) -> None:
    """Remove hooks, state and classes that fully_shard has left on a model's modules.

    The parameters must already have been replaced by plain ones.
    """
    for module in model.modules():
        for name in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            module.__dict__.pop(name, None)
        if not isinstance(module, FSDPModule):
            continue
        state = module._get_fsdp_state()
        handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
        for group in state._fsdp_param_groups:
            handles += group._module_to_pre_save_state_dict_hook_handle.values()
            handles += group._module_to_pre_load_state_dict_hook_handle.values()
            handles += [parameter._post_load_hook_handle for parameter in group.fsdp_params]
        for handle in handles:
            handle.remove()
        module.__class__ = type(module).__bases__[1]
        for key in (STATE_KEY, REGISTRY_KEY):
            module.__dict__.pop(key, None)
        _composable_state._module_state_mapping.pop(module, None)
