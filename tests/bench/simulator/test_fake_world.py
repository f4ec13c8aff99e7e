"""A world of one rank: its shortcuts keep layouts and peaks, and PyTorch has every patched
attribute."""

from __future__ import annotations

import gc
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.simulator import dry_run
from bench.simulator.fake_world import META, PATCHED, few_tiles, only_rank
from odysseus.config.run import RunConfig

_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.narrow(2, 0, 3).contiguous(),
    "slice": lambda x: x.narrow(2, 1, 3),
    "transposed": lambda x: x.narrow(2, 0, 3).transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda x: x[:1, :, :3].expand(4, -1, -1),
}
_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x * y": lambda x, y: x * y,
    "x * y[0]": lambda x, y: x * y[0],
    "2 * x": lambda x, y: 2 * x,
    "x * fp64": lambda x, y: x * y.double(),
    "silu": lambda x, y: F.silu(x),
    "mm": lambda x, y: x[0] @ y[0].T,
    "mm of a transposed": lambda x, y: x[0].T @ y[0],
}


@pytest.mark.parametrize("name", PATCHED)
def test_pytorch_has_every_patched_attribute(name: str) -> None:
    look_here = f"torch changed: look at {name} in bench/simulator/fake_world.py"
    try:
        attribute = pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        pytest.fail(look_here)
    if (parameters := PATCHED[name]) is not None:
        assert tuple(inspect.signature(attribute).parameters) == parameters, look_here


@pytest.mark.parametrize("function", _FUNCTIONS)
@pytest.mark.parametrize("of_y", _LAYOUTS)
@pytest.mark.parametrize("of_x", _LAYOUTS)
def test_results_look_as_on_a_cpu(of_x: str, of_y: str, function: str) -> None:
    def result(device: torch.device) -> tuple[object, ...]:
        x, y = (_LAYOUTS[of](torch.empty(4, 5, 6, device=device)) for of in (of_x, of_y))
        found = _FUNCTIONS[function](x, y)
        return found.shape, found.stride(), found.dtype

    with only_rank(0, 1, on_gpu=True):
        predicted = result(META)
    assert predicted == result(torch.device("cpu"))


@pytest.mark.parametrize("tokens", [256, 513, 1100, 2000])
@pytest.mark.parametrize("method", ["tp", "tp_sp", "ulysses", "odysseus"])
def test_few_tiles_have_the_peak_of_all(method: str, tokens: int) -> None:
    run = replace(
        RunConfig(),
        dry_run=True,
        world_size=1,
        method=method,
        seq_len=tokens,
        tiled_mlp_compute=True,
    )
    all_tiles = dry_run.count(run, 0)
    with few_tiles():
        first_tiles = dry_run.count(run, 0)
    assert first_tiles.peak.bytes == all_tiles.peak.bytes
    assert (first_tiles.flops["matmul_flops"] < all_tiles.flops["matmul_flops"]) == (
        tokens > 3 * 256
    )


def test_garbage_is_collected_again_afterwards() -> None:
    with only_rank(0, 1, on_gpu=False):
        assert not gc.isenabled()
    assert gc.isenabled()
