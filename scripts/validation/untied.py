"""Measure the peak memory of Untied Ulysses' own code, for docs/validation.md.

All of Llama-8B runs a step on tensors without values, as one of 8 ranks without peers, like that
repository (ghadiaravi13/untied-ulysses, its fork of torchtitan):

- FSDP2 has one unit per block, and the rest in the root, which stays gathered until backward ends.
- Block inputs are on the host, except the first, which its stride of offloaded layers leaves out.
- Norms and MLPs run in tiles that are joined.
- A table of angles is made for the whole sequence; a rank uses its part.
- Liger's loss computes the head's gradient in forward.

FlashAttention-3 is that of bench/simulator/cuda_kernels.py. Attention is either Ulysses, which
keeps its tensors from before the exchange, or Untied Ulysses, four times eight heads.

python -m scripts.validation.untied    about a minute
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from bench.meters.memory import MemoryMeter, Peak
from bench.simulator.cuda_kernels import flash_3_backward, rms_norm
from bench.simulator.dry_run import CUDA_ROUNDING_BYTES
from bench.simulator.fake_world import META, only_rank
from odysseus.model.block_attention import CUDA_FLASH

RANKS, TOKENS, WIDTH, INNER, VOCABULARY, LAYERS = 8, 3_145_728, 4096, 14336, 128_256, 32
HEADS, GROUPS, HEAD = 32, 8, 128
SHARD, GIB = TOKENS // RANKS, 2**30
STREAM = 2 * SHARD * WIDTH
"""Bytes of one rank's stream, the unit U."""
PUBLISHED = {"Ulysses": 15.0 + 33.0 + 16.6, "by heads": 15.0 + 19.5 + 16.6}


class Tiled(torch.autograd.Function):
    """A module on tiles of as many tokens as the model is wide, joined; it computes twice."""

    @staticmethod
    def forward(ctx: Any, of_tile: Any, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.of_tile = of_tile
        return torch.cat([of_tile(tile) for tile in x.split(WIDTH, dim=1)], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        grad_x = torch.zeros_like(x)
        tiles = (each.split(WIDTH, dim=1) for each in (x.detach(), grads[0], grad_x))
        for tile, grad, grad_tile in zip(*tiles, strict=True):
            tile.requires_grad_().grad = grad_tile
            with torch.enable_grad():
                torch.autograd.backward(ctx.of_tile(tile), grad)
        return None, grad_x, *[None] * (len(ctx.needs_input_grad) - 2)


def to_heads(x: Tensor) -> Tensor:
    """[1, S/N, F, K] of a rank's tokens to [1, S, F/N, K] of its heads."""
    parts = x.unflatten(2, (RANKS, -1)).transpose(0, 2).contiguous()
    arrived = torch.empty_like(parts)
    dist.all_to_all_single(arrived, parts)
    return arrived.view(1, -1, *arrived.shape[3:])


def to_tokens(x: Tensor) -> Tensor:
    """[1, S, F/N, K] of a rank's heads to [1, S/N, F, K] of its tokens."""
    parts = x.unflatten(1, (RANKS, -1)).permute(1, 3, 2, 0, 4).contiguous()
    arrived = torch.empty_like(parts)
    dist.all_to_all_single(arrived, parts)
    return arrived.flatten(0, 1).permute(2, 1, 0, 3).contiguous()


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate pairs of a head's elements, as complex numbers in fp32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * angles[None, :, None]).flatten(3).type_as(x)


class Ulysses(torch.autograd.Function):
    """Exchange, attention and exchange as one operation; it keeps the tensors before each."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = map(to_heads, before := (q, k, v))
        o, logsumexp = CUDA_FLASH.forward(q, k, v, True)
        o = to_tokens(o.float().to(o.dtype))
        ctx.save_for_backward(*before, o, logsumexp)
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *before, logsumexp = ctx.saved_tensors  # stay until this returns
        q, k, v, o, grad_o = map(to_heads, (*before, *grads))
        grad_q, grad_k, grad_v = flash_3_backward(grad_o, q, k, v, o, logsumexp, True)
        return to_tokens(grad_q), to_tokens(grad_k), to_tokens(grad_v)


class ByHeads(torch.autograd.Function):
    """Normed stream to attention's output, one head of each rank at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o, kept = x.new_empty(1, SHARD, HEADS, HEAD), []
        key, value = (to_heads(by_head(x, weight)) for weight in (k, v))
        for number, weight in enumerate(q.split(RANKS * HEAD)):
            here, logsumexp = CUDA_FLASH.forward(to_heads(by_head(x, weight)), key, value, True)
            kept.append(logsumexp)
            here = here.float().to(here.dtype)
            o[:, :, number * RANKS : (number + 1) * RANKS] = to_tokens(here)
        ctx.save_for_backward(x, q, k, v, o, *kept)
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, q, k, v, o, *kept = ctx.saved_tensors
        grad_x: Tensor | None = None
        sums: tuple[Tensor, ...] = ()
        grad_q = torch.zeros_like(q)
        grad_kv = [torch.zeros_like(weight) for weight in (k, v)]
        flat = x.flatten(0, 1)
        key, value = (to_heads(by_head(x, weight)) for weight in (k, v))
        for number, (weight, into) in enumerate(
            zip(q.split(RANKS * HEAD), grad_q.split(RANKS * HEAD), strict=True)
        ):
            query = to_heads(by_head(x, weight))
            own = slice(number * RANKS, (number + 1) * RANKS)
            exchanged = to_heads(o[:, :, own]), to_heads(grads[0][:, :, own])
            gradients = flash_3_backward(
                exchanged[1], query, key, value, exchanged[0], kept[number], True
            )
            del query, exchanged
            for total, part in zip(sums, gradients[1:], strict=False):
                total.add_(part)
            sums = sums or gradients[1:]
            grad = to_tokens(gradients[0]).flatten(2).flatten(0, 1)
            del gradients
            grad_x = grad @ weight if grad_x is None else grad_x.addmm_(grad, weight)
            into.copy_(grad.T @ flat)
            del grad
        assert grad_x is not None, "there are heads"
        for total, weight, into in zip(sums, (k, v), grad_kv, strict=True):
            grad = to_tokens(total).flatten(2).flatten(0, 1)
            grad_x.addmm_(grad, weight)
            into.copy_(grad.T @ flat)
        return grad_x.view_as(x), grad_q, *grad_kv


def by_head(x: Tensor, weight: Tensor) -> Tensor:
    """Project; by heads the result is rotated in place."""
    return F.linear(x, weight).unflatten(-1, (-1, HEAD))


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        def of_tile(tile: Tensor) -> Tensor:
            return rms_norm(tile, self.weight, 1e-5)

        return Tiled.apply(of_tile, x, self.weight)


class Block(nn.Module):
    def __init__(self, heads_at_a_time: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(Norm() for _ in range(2))
        self.q, self.o = (nn.Parameter(torch.empty(WIDTH, WIDTH)) for _ in range(2))
        self.k, self.v = (nn.Parameter(torch.empty(GROUPS * HEAD, WIDTH)) for _ in range(2))
        self.gate, self.up = (nn.Parameter(torch.empty(INNER, WIDTH)) for _ in range(2))
        self.down = nn.Parameter(torch.empty(WIDTH, INNER))
        self.heads_at_a_time = heads_at_a_time

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x), angles)
        weights = self.gate, self.up, self.down
        return x + Tiled.apply(self.mlp, self.norms[1](x), *weights)

    def attention(self, x: Tensor, angles: Tensor) -> Tensor:
        if self.heads_at_a_time:
            o = ByHeads.apply(x, self.q, self.k, self.v)
            order = torch.arange(HEADS, device=META)
            return F.linear(o[:, :, order].flatten(2), self.o)  # heads were out of order
        q, k, v = (by_head(x, weight) for weight in (self.q, self.k, self.v))
        o = Ulysses.apply(rotated(q, angles), rotated(k, angles), v)
        return F.linear(o.flatten(2), self.o)

    def mlp(self, x: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, self.gate)) * F.linear(x, self.up), self.down)


class Loss(torch.autograd.Function):
    """Loss that, like Liger's, has the gradients of its input and the head before backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(torch.zeros_like(x), torch.zeros_like(weight))
        return x.new_empty(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.saved_tensors


class Model(nn.Module):
    def __init__(self, heads_at_a_time: bool) -> None:
        super().__init__()
        self.table, self.head = (nn.Parameter(torch.empty(VOCABULARY, WIDTH)) for _ in range(2))
        self.blocks = nn.ModuleList(Block(heads_at_a_time) for _ in range(LAYERS))
        self.norm = Norm()

    def forward(self, ids: Tensor, angles: Tensor) -> Tensor:
        x = F.embedding(ids, self.table)
        for number, block in enumerate(self.blocks):
            with saved_tensors_hooks(_to_host, Tensor.clone) if number else nullcontext():
                x = checkpoint(block, x, angles, use_reentrant=False, preserve_rng_state=False)
        return Loss.apply(self.norm(x), self.head)


def _to_host(x: Tensor) -> Tensor:
    with record_function("odysseus::host"):
        return x.clone()


def peak(heads_at_a_time: bool) -> Peak:
    """Peak of one rank's second step."""
    with only_rank(0, RANKS, True):
        with META:
            model = Model(heads_at_a_time)
            ids = torch.arange(SHARD)[None]
            table = torch.empty(TOKENS, HEAD // 2, dtype=torch.complex64)
        mesh = init_device_mesh(META.type, (RANKS,))
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        for number, block in enumerate(model.blocks):
            freed = number < LAYERS - 1
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=freed)
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(2):
            with MemoryMeter(CUDA_ROUNDING_BYTES) as meter:
                meter.watch([*_shards(model.parameters()), ids, table], "parameters")
                states = [state for of in optimizer.state.values() for state in of.values()]
                meter.watch(_shards(states), "optimizer")
                model(ids, table[:SHARD]).backward()
                optimizer.step()
                optimizer.zero_grad()
    return meter.peak()


def _shards(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    return (x.to_local() if isinstance(x, DTensor) else x for x in tensors)


def main() -> None:
    for name, published in PUBLISHED.items():
        most = peak(name == "by heads")
        gib = most.bytes / GIB
        print(f"{name}: {gib:.1f} GiB, published {published:.1f} ({gib / published - 1:+.1%})")
        print("  " + ", ".join(f"{kind} {size / GIB:.1f}" for kind, size in most.by_kind.items()))
        alike = Counter((a.bytes, a.kind, a.made_by) for a in most.alive if a.bytes > STREAM / 20)
        for (size, kind, made_by), count in sorted(alike.items(), key=lambda i: -i[0][0] * i[1]):
            print(f"  {count} x {size / STREAM:5.2f} U  {kind}  {made_by}")


if __name__ == "__main__":
    main()
