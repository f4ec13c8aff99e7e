"""Measure a hardware profile of this machine or cluster, on every rank at once, as in a step.

Ranks that share cores or links slow each other down, so all ranks measure the same at the same
time, and the slowest counts. No cell is measured, so predictions can be compared with cells.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import silu

from bench.calibration import host
from bench.calibration.stopwatch import extra_s, in_turn, reduce_over_ranks, seconds
from bench.hardware.profiles import GIB, NCCL_PEER_BYTES, Hardware
from bench.hardware.speeds import Attention, Link, Points, Speeds
from bench.meters.device import data_sheet_flops_per_s, matmul_flops_per_s
from bench.meters.flops import attention_flops
from bench.meters.traffic import bytes_sent
from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import machine_memory_bytes, ranks_per_node
from odysseus.model.kernels import attention_kernel, choose_kernels
from odysseus.parallel.mesh import Axis
from odysseus.parallel.transfers import start_hop

_LONGEST_S = 0.5
"""The first message that takes longer than these seconds is the largest one measured."""
_OPERANDS = 2**26
"""Bytes of other operands between two uses of the same operand, as in a step."""
_TOKENS = {"cpu": (128, 512, 1024, 2048, 4096, 8192), "cuda": (512, 2048, 8192, 32768)}
"""Lengths at which attention is measured."""
_LITTLE = 64
"""Rows of the matmul that ranks compute between two collectives."""
_MORE = (128, 256, 512, 1536)
"""Rows of the larger matmuls, after which skew is measured."""
_TURNS = 15
"""Number of times that each is measured, in turn."""


def measure(run: RunConfig, device: torch.device, links: tuple[Link, ...] = ()) -> Hardware:
    """Measure the profile of the ranks of this job, in a run's dtype; the same on every rank.

    Args:
        links: Links that were measured before; measured now if empty.
    """
    local = ranks_per_node(run.world_size)
    on_gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else 0
    return Hardware(
        device=device.type,
        dtype=run.dtype,
        memory_bytes=memory or machine_memory_bytes() // local,
        context_bytes=GIB if on_gpu else 0,
        nccl_bytes=2 * GIB if on_gpu else 0,
        nccl_peer_bytes=NCCL_PEER_BYTES if on_gpu else 0,
        workspace_bytes=32 * 2**20 if on_gpu else 0,
        gpus_per_node=local,
        host_memory_bytes=machine_memory_bytes(),
        speeds=_speeds(run, device, local, links),
    )


def _speeds(run: RunConfig, device: torch.device, local: int, links: tuple[Link, ...]) -> Speeds:
    dtype, on_gpu = run.compute_dtype, device.type == "cuda"
    peak = data_sheet_flops_per_s(device, dtype) or matmul_flops_per_s(device, dtype)
    pinned = torch.empty(2**26, dtype=torch.uint8, pin_memory=on_gpu)
    on_device = torch.empty_like(pinned, device=device)
    issue_s, hooks_s = host.measure(device)
    return Speeds(
        peak_flops_per_s=reduce_over_ranks(peak, min),
        issue_s=issue_s,
        hooks_s=hooks_s,
        matmul=tuple(_matmuls(device, dtype)),
        attention=dict(_attentions(run, device)),
        memory=_memory(torch.add, 2, device),
        silu=_memory(silu, 1, device),
        host_memory_bytes_per_s=_memory(torch.add, 2, torch.device("cpu"))[-1][1],
        to_host_bytes_per_s=pinned.nbytes / seconds(lambda: pinned.copy_(on_device), device),
        to_device_bytes_per_s=pinned.nbytes / seconds(lambda: on_device.copy_(pinned), device),
        skew=() if on_gpu or run.world_size == 1 else tuple(sorted(_skew(device))),
        links=links or tuple(_links(run.world_size, local, device)),
    )


def _matmuls(
    device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[float, float, float, float]]:
    sides = (64, 512, 4096) if device.type == "cpu" else (256, 2048, 16384)
    for rows, columns, inner in itertools.product(sides, repeat=3):
        if sorted((rows, columns, inner))[1] == sides[-1]:
            continue  # two of the longest side: as fast as one of them, and slow to measure
        a = torch.randn(rows, inner, device=device).to(dtype)
        others = max(1, _OPERANDS // (4 * columns * inner))
        b = torch.randn(others, columns, inner, device=device).to(dtype).mT
        multiply = _through(torch.mm, [(a, one) for one in b])
        yield rows, columns, inner, 2 * rows * columns * inner / seconds(multiply, device)


def _memory(operation: Callable[..., Tensor], reads: int, device: torch.device) -> Points:
    """Measure the bytes/s of an operation that reads `reads` tensors and writes one."""
    points = []
    largest = 24 if device.type == "cpu" else 30
    for size in (2**power for power in range(12, largest + 1, 2)):
        operands = torch.ones(max(1, _OPERANDS // size), reads, size // 4, device=device)
        bytes_moved = (reads + 1) * size
        taken_s = seconds(_through(operation, [x.unbind() for x in operands]), device)
        points.append((float(bytes_moved), bytes_moved / taken_s))
    return tuple(points)


def _attentions(run: RunConfig, device: torch.device) -> Iterator[tuple[str, Attention]]:
    """Measure the run's kernel, and FlashAttention-2 after it where that is another."""
    name = attention_kernel(run, device)
    yield name, _attention(run, device)
    if device.type == "cuda" and run.dtype == "bf16" and name != "flash_attention_2":
        model = replace(run.model, attn_implementation="flash_attention_2")
        yield "flash_attention_2", _attention(replace(run, model=model), device)


def _attention(run: RunConfig, device: torch.device) -> Attention:
    """Measure the run's kernel with one rank's heads: causal, and without a mask for rings."""
    kernels = choose_kernels(run.model, device, run.compute_dtype, run.architecture.head_dim)
    points_by_pass = defaultdict[str, list[tuple[float, float]]](list)
    for tokens in _TOKENS[device.type]:
        first = _qkv(run, tokens, device)
        others = _OPERANDS // (4 * first[0].nbytes) - 1
        qkvs = [first, *(_qkv(run, tokens, device) for _ in range(others))]
        done = [(kernels.attend(*qkv), *qkv) for qkv in qkvs]

        def backward(o: Tensor, *qkv: Tensor) -> None:
            torch.autograd.grad(o, qkv, o, retain_graph=True)

        actions = {
            "forward": _through(torch.no_grad()(kernels.attend), qkvs),
            "backward": _through(backward, done),
        }
        if blocks := kernels.blocks:
            plain = [(q.detach(), k.detach(), v.detach(), False) for q, k, v in qkvs]
            whole = [(q, q, k, v, *blocks.forward(q, k, v, no), no) for q, k, v, no in plain]
            actions |= {
                "whole_forward": _through(blocks.forward, plain),
                "whole_backward": _through(blocks.backward, whole),
            }
        _, _, heads, head_dim = first[0].shape
        size = 1, heads, tokens, tokens, head_dim
        for name, action in actions.items():
            matmuls = 2 if name.endswith("forward") else 5
            work = attention_flops(*size, not name.startswith("whole"), matmuls)
            points_by_pass[name].append((float(tokens), work / seconds(action, device)))
    points = {way: tuple(points) for way, points in points_by_pass.items()}
    return Attention(
        forward=points["forward"],
        backward=points["backward"],
        whole_forward=points.get("whole_forward", ()),
        whole_backward=points.get("whole_backward", ()),
    )


def _through(action: Callable[..., object], operands: Iterable[Any]) -> Callable[[], object]:
    """Return the action on the next operands at each call, which no cache still has."""
    turns = itertools.cycle(operands)
    return lambda: action(*next(turns))


def _qkv(run: RunConfig, tokens: int, device: torch.device) -> list[Tensor]:
    """Make q, k and v of one rank's share of the heads, with at least one kv head.

    With more heads the rows of a head are further apart in memory, which on CPU takes up to a sixth
    longer.
    """
    a = run.architecture
    kv_heads = max(1, a.num_key_value_heads // run.world_size)
    heads = kv_heads * a.num_attention_heads // a.num_key_value_heads, kv_heads, kv_heads
    return [
        torch.randn(1, tokens, n, a.head_dim, device=device).to(run.compute_dtype).requires_grad_()
        for n in heads
    ]


def _links(world: int, local: int, device: torch.device) -> Iterator[Link]:
    """Measure each collective over groups of every size that divides the world.

    Groups are of neighbours and of distant ranks; all groups communicate at once.
    """
    for ranks in (n for n in range(2, world + 1) if world % n == 0):
        grid = init_device_mesh(
            device.type, (world // ranks, ranks), mesh_dim_names=("far", "near")
        )
        for axis in ("near", "far"):
            group = grid.get_group(axis)
            if group.size() == 1:
                continue
            members = dist.get_process_group_ranks(group)
            nodes = len({rank // local for rank in members})
            placed = {"ranks": len(members), "nodes": nodes, "stride": members[1] - members[0]}
            for collective in _COLLECTIVES:
                points = _points(collective, group, device)
                yield Link(collective=collective, points=points, **placed)


def _points(collective: str, group: dist.ProcessGroup, device: torch.device) -> Points:
    """Measure one collective by size, after little computing, with new operands at each call."""
    compute = _compute(device, _LITTLE)
    points, largest = [], 24 if device.type == "cpu" else 30
    alone = seconds(compute, device)
    for size in (2**power for power in range(12, largest + 1, 2)):
        elements = -(-size // 4 // group.size()) * group.size()
        xs = torch.ones(max(1, _OPERANDS // size), elements, device=device)
        call = _through(_COLLECTIVES[collective], [(x, group) for x in xs])
        extra = extra_s(lambda call=call: (compute(), call()), compute, device)
        taken_s = max(extra, 0.01 * alone)  # less is noise
        bytes_moved = xs[0].nbytes
        points.append(
            (float(bytes_moved), bytes_sent(collective, bytes_moved, group.size()) / taken_s)
        )
        if taken_s > _LONGEST_S:
            break
    return tuple(points)


def _skew(device: torch.device) -> Iterator[tuple[float, float]]:
    """Yield (seconds of compute, extra seconds of a small collective after it).

    Ranks that share a core reach a collective one after another if they compute for less than a
    time slice: the first rank's data has arrived when the next rank needs it. Otherwise they reach
    it together, and all wait for the work of each.
    """
    group = dist.group.WORLD
    assert group is not None
    x = torch.ones(group.size() * 256, device=device)
    calls = [partial(call, x, group) for call in _COLLECTIVES.values()]
    actions: list[Callable[[], object]] = []
    for rows in (_LITTLE, *_MORE):
        compute = _compute(device, rows)
        actions.append(lambda compute=compute: [(compute(), call()) for call in calls])
        actions.append(lambda compute=compute: [compute() for _ in calls])
    turns = [
        [(both - alone, alone) for both, alone in zip(row[::2], row[1::2], strict=True)]
        for row in in_turn(actions, 1, _TURNS, device)
    ]
    for at in range(1, 1 + len(_MORE)):
        computed_s = median(turn[at][1] for turn in turns)
        longer_s = median(turn[at][0] - turn[0][0] for turn in turns)
        yield computed_s / len(calls), max(longer_s / len(calls), 1e-6)


def _compute(device: torch.device, rows: int) -> Callable[[], object]:
    """Return a matmul with this number of rows."""
    a, b = torch.randn(rows, 1024, device=device), torch.randn(1024, 512, device=device)
    return lambda: torch.mm(a, b)


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> None:
    dist.all_gather_single(x, x.chunk(group.size())[0].clone(), group=group)


def _reduce_scatter(x: Tensor, group: dist.ProcessGroup) -> None:
    dist.reduce_scatter_single(x.chunk(group.size())[0].clone(), x, group=group)


def _all_to_all(x: Tensor, group: dist.ProcessGroup) -> None:
    dist.all_to_all_single(torch.empty_like(x), x, group=group)


def _all_reduce(x: Tensor, group: dist.ProcessGroup) -> None:
    dist.all_reduce(x, group=group)


def _p2p(x: Tensor, group: dist.ProcessGroup) -> None:
    start_hop(x, Axis(group, "activation")).wait()


_COLLECTIVES: dict[str, Callable[[Tensor, dist.ProcessGroup], Any]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "p2p": _p2p,
}
