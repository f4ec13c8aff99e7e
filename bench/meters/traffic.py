"""The traffic meter: every collective of a step, its bytes and its purpose.

It watches from outside. A dispatch mode sees each c10d operation, this project's and FSDP2's, in
forward and in backward; the profiler region of an operation names its purpose.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from bench.meters.kinds import COLLECTIVES, PURPOSES
from bench.meters.watcher import Watcher

# c10d operation: (collective, argument that holds the whole tensor, argument of the group)
_OPERATIONS = {
    "c10d::allreduce_": ("all_reduce", 0, 1),
    "c10d::_allgather_base_": ("all_gather", 0, 2),
    "c10d::allgather_": ("all_gather", 0, 2),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1, 2),
    "c10d::alltoall_base_": ("all_to_all", 1, 2),
    "c10d::send": ("p2p", 0, 1),
    "c10d::allreduce_coalesced_": ("all_reduce", 0, 1),
    "c10d::allgather_into_tensor_coalesced_": ("all_gather", 0, 2),
    "c10d::reduce_scatter_": ("reduce_scatter", 1, 2),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1, 2),
    "c10d::alltoall_": ("all_to_all", 1, 2),
    "c10d::broadcast_": ("broadcast", 0, 1),
    "c10d::reduce_": ("reduce", 0, 1),
    "c10d::scatter_": ("scatter", 0, 2),
    "c10d::gather_": ("gather", 1, 2),
}
_SILENT = {"c10d::recv_", "c10d::recv_any_source_", "c10d::barrier"}
_SILENT |= {f"_c10d_functional::{name}" for name in ("wait_tensor", "_wrap_tensor_autograd")}
# DTensor's and DeepSpeed's (inside whose operator no mode sees the collective): their first
# argument is this rank's part, their last names the group.
_FUNCTIONAL = {
    "deepspeed::dim_zero_all_to_all": "all_to_all",
    "_c10d_functional::all_reduce": "all_reduce",
    "_c10d_functional::all_gather_into_tensor": "all_gather",
    "_c10d_functional::reduce_scatter_tensor": "reduce_scatter",
    "_c10d_functional::all_to_all_single": "all_to_all",
    "_c10d_functional::all_reduce_": "all_reduce",
    "_c10d_functional::all_reduce_coalesced": "all_reduce",
    "_c10d_functional::all_gather_into_tensor_coalesced": "all_gather",
    "_c10d_functional::reduce_scatter_tensor_coalesced": "reduce_scatter",
    "_c10d_functional::broadcast": "broadcast",
}


def bytes_sent(collective: str, size_bytes: int | Fraction, ranks: int) -> Fraction:
    """Return the bytes that one rank sends, by the usual convention.

    Args:
        collective: One of COLLECTIVES, or broadcast, reduce, scatter or gather.
        size_bytes: Bytes of the whole (gathered) tensor; for all_to_all and p2p, of this rank's.
        ranks: Size of the group, n.

    Returns:
        All-reduce 2(n-1)/n, all-gather, reduce-scatter and all-to-all (n-1)/n of the size (ring
        algorithms; Thakur et al., 2005, doi 10.1177/1094342005051521), p2p the size; broadcast,
        reduce, scatter and gather (n-1)/n, the mean of the ranks. A fraction: a ring of 3 ranks
        does not send a whole number of bytes of every tensor.
    """
    share = Fraction(ranks - 1, ranks)
    return size_bytes * {"all_reduce": 2 * share, "p2p": Fraction(1)}.get(collective, share)


def equal_size(sent: int, ranks: int) -> Fraction:
    """Return the size of an all-to-all of equal parts in which a rank sends this many bytes."""
    return Fraction(sent * ranks, ranks - 1)


@dataclass(frozen=True, slots=True)
class Call:
    """One collective, seen by one rank.

    Attributes:
        size_bytes: Size in the sense of :func:`bytes_sent`; where ranks send unequal parts, of the
            equal parts that are as many bytes.
        received_bytes: Size, in the same sense, of what this rank receives; 0 unless ranks send
            unequal parts.
        ranks: The group's ranks, by their numbers in the world.
        is_async: Whether the caller continues and waits for it later.
    """

    collective: str
    purpose: str
    size_bytes: int | Fraction
    ranks: tuple[int, ...]
    is_async: bool
    received_bytes: int | Fraction = 0

    @property
    def bytes_sent(self) -> Fraction:
        return bytes_sent(self.collective, self.size_bytes, len(self.ranks))


def call_of(func: OpOverload, args: tuple[Any, ...], region: str) -> Call | None:
    """Return the collective that an operation is; None if it sends nothing.

    Raises:
        RuntimeError: the c10d operation has no formula here. It must not be missed silently.
    """
    name = func.name()
    if name in _FUNCTIONAL:
        return _functional_call(_FUNCTIONAL[name], args, region)
    if not name.startswith(("c10d::", "_c10d_functional::")) or name in _SILENT:
        return None
    if name not in _OPERATIONS:
        raise RuntimeError(f"the traffic meter has no formula for {name}")
    collective, tensor_at, group_at = _OPERATIONS[name]
    tensors: list[Tensor] = tree_leaves(args[tensor_at])
    names = [argument.name for argument in func._schema.arguments]
    at = names.index("async_op") if "async_op" in names else len(args)
    ranks = tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(args[group_at])))
    size: int | Fraction = _bytes(tensors)
    received: int | Fraction = 0
    if name == "c10d::alltoall_base_":
        parts = [args[names.index(f"{side}_split_sizes")] for side in ("input", "output")]
        if any(len(set(of)) > 1 for of in parts):
            of_tensors = zip((tensors, tree_leaves(args[0])), parts, strict=True)
            size, received = (_equal_parts(_bytes(t), of, ranks) for t, of in of_tensors)
    is_async = bool(args[at]) if at < len(args) else True
    return Call(collective, _purpose(collective, region), size, ranks, is_async, received)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _equal_parts(size: int, parts: list[int], ranks: tuple[int, ...]) -> Fraction:
    """Return the size of an all-to-all of equal parts in which a rank sends (or receives) as many
    bytes as in this one."""
    kept = size * parts[ranks.index(dist.get_rank())] // sum(parts) if size else 0
    return equal_size(size - kept, len(ranks))


def _functional_call(collective: str, args: tuple[Any, ...], region: str) -> Call:
    ranks = tuple(dist.get_process_group_ranks(_resolve_process_group(args[-1])))
    size = _bytes(tree_leaves(args[0]))
    shares = args[2] if collective == "all_to_all" and len(args) > 2 else ()
    if len(set(shares)) > 1:  # a permutation of the ranks
        kept = size * shares[ranks.index(dist.get_rank())] // sum(shares)
        return Call("p2p", _purpose("p2p", region), size - kept, ranks, True)
    whole = size * len(ranks) if collective == "all_gather" else size
    return Call(collective, _purpose(collective, region), whole, ranks, True)


def _purpose(collective: str, region: str) -> str:
    if region.startswith("odysseus::"):
        return region.removeprefix("odysseus::")
    if region.startswith("FSDP::"):
        return "parameter" if collective == "all_gather" else "gradient"
    return "activation"  # a library's own call inside a block, such as yunchang's


class TrafficMeter(Watcher):
    """Records every collective issued while it is entered.

    Raises:
        RuntimeError: see :func:`call_of`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def observe(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        if call := call_of(func, args, self.region):
            self.calls.append(call)

    def totals(self) -> dict[str, int]:
        """Return the row's columns: calls, and bytes by collective, by purpose and in total."""
        by: Counter[str] = Counter()
        for call in self.calls:
            for column in ("total", call.collective, call.purpose):
                by[column] += call.bytes_sent  # pyrefly: ignore
        names = ("total", *COLLECTIVES, *PURPOSES)
        return {f"comm_bytes_{name}": round(by[name]) for name in names} | {
            "comm_calls_total": len(self.calls)
        }
