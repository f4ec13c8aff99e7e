"""Each function around PyTorch's private names does what it says."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from odysseus.parallel import fsdp_internals
from odysseus.parallel.fsdp_internals import ReduceScatter
from tests.support.ranks import run_ranks

CHANGED = "torch changed: look at odysseus/parallel/fsdp_internals.py"


class Recorded(ReduceScatter):
    """FSDP2's reduce-scatter, with the number of elements that each call sums."""

    def __init__(self) -> None:
        self.elements: list[int] = []

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        self.elements.append(input_tensor.numel())
        dist.reduce_scatter_single(output_tensor, input_tensor, group=group, op=op)


def exercise() -> dict[str, bool]:
    """Whether each function of fsdp_internals does on this rank what it is named for."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("two", "one"))
    full, one = fsdp_internals.flatten_mesh(mesh, "full"), mesh["one"]
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 6, bias=False)).double()
    first = model[0].weight
    before = model[0].weight.detach().clone()
    over_two, over_one = fsdp_internals.rows_over(full), fsdp_internals.rows_over(one)
    fully_shard(model, mesh=full, shard_placement_fn=lambda p: over_two if p is first else over_one)
    assert isinstance(model, FSDPModule)
    ends: list[bool] = []
    reductions = []
    groups = fsdp_internals.parameter_groups(model)
    for group in groups:
        reductions.append(Recorded())
        fsdp_internals.set_reduce_scatter(group, reductions[-1])
    shapes = {
        fsdp_internals.ranks_of(group): [p.shape for p in fsdp_internals.sharded_parameters(group)]
        for group in groups
    }
    for group in groups:
        fsdp_internals.reduce_into(group, torch.float32)
    taken = []
    for layer in model:
        layer.weight.grad_dtype = torch.float32
    hooks = [fsdp_internals.has_gradient_hooks(layer.weight) for layer in model]
    first = model[0].weight
    first.register_post_accumulate_grad_hook(lambda p: taken.append(p.grad.dtype))
    hooks.append(fsdp_internals.has_gradient_hooks(first))
    model.set_gradient_divide_factor(2.0)
    for group in groups:
        fsdp_internals.disable_division(group)
    model.set_force_sum_reduction_for_comms(True)
    fsdp_internals.gather_on_current_stream(model)
    x = torch.ones(1, 4, dtype=torch.float64, requires_grad=True)
    x.register_hook(lambda grad: fsdp_internals.call_after_backward(lambda: ends.append(True)))
    y = model(x)
    y.sum().backward()
    gradient = model[1].weight.grad
    assert isinstance(gradient, DTensor)
    # y = W2 W1 x, so each row of W2's gradient is W1 x.
    summed = torch.allclose(gradient.to_local(), before.sum(1).expand(6, 4).float())
    model.reshard()
    for layer in model:
        layer.weight = nn.Parameter(layer.weight.full_tensor().detach())
    fsdp_internals.remove_fsdp(model)
    frozen = nn.Linear(4, 2, bias=False).double()
    frozen.weight.requires_grad_(False)
    fully_shard(frozen, mesh=full, mp_policy=MixedPrecisionPolicy(param_dtype=torch.float32))
    other = x.detach().requires_grad_()
    frozen(other).sum().backward()
    frozen.weight.requires_grad_(True)
    for group in fsdp_internals.parameter_groups(frozen):
        fsdp_internals.follow_frozen(group)
    frozen(other).sum().backward()
    plain = type(model) is nn.Sequential and torch.allclose(model(x), y)
    fully_shard(model, mesh=full)  # refused if anything were left
    return {
        "flatten_mesh": full.ndim == 1 and full.size() == 2,
        "rows_over": shapes == {2: [(4, 4)], 1: [(6, 4)]},
        "parameter_groups": len(groups) == 2,
        "is_reduced_first": [fsdp_internals.is_reduced_first(g) for g in groups] == [False, True],
        "set_reduce_scatter": [n for r in reductions for n in r.elements] == [16],
        "disable_division": summed,
        "reduce_into": gradient.dtype == torch.float32 and taken == [torch.float32],
        "has_gradient_hooks": hooks == [False, False, True],
        "call_after_backward": ends == [True],
        "follow_frozen": frozen.weight.grad is not None,
        "remove_fsdp": plain,
    }


def test_each_private_name_does_what_it_is_used_for() -> None:
    for results in run_ranks(exercise, 2):
        assert results == dict.fromkeys(results, True), CHANGED
