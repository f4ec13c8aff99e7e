"""Compile for a GPU that is not here: ``python -m tests.fake_cuda.kernels CAPABILITY``.

Liger's kernels are launched as in training, forward and backward, by this project's functions; each
launch only compiles, with the types and sizes that it has there. Prints, as JSON, the bytes of each
kernel's machine code.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bench.scripted.gpu import PROPERTIES


def compiled(capability: int) -> dict[str, int]:
    """Return the bytes of machine code of every kernel, by name, for sm_80, sm_90 and so on."""
    found: dict[str, int] = {}
    target = GPUTarget("cuda", capability, 32)

    def only_compiled(kernel: JITFunction[Any], grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            built = kernel.run(*args, grid=grid, warmup=True, **kwargs)
            found[kernel.__name__] = len(built.asm["cubin"])

        return launch

    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
            get_active_torch_device=lambda: torch.device("cpu"),
        )
    )
    with (
        patch.object(JITFunction, "__getitem__", only_compiled),
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "get_device_capability", lambda *_: divmod(capability, 10)),
        patch.object(torch.cuda, "get_device_properties", lambda *_: PROPERTIES),
    ):
        from odysseus.model import liger

        for dtype in (torch.bfloat16, torch.float32):
            _launch_all(liger, dtype)
    return found


def _launch_all(liger: Any, dtype: torch.dtype) -> None:
    """Call every function that launches kernels, with the widths of Llama-8B."""

    def leaf(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=dtype, requires_grad=True)

    def table() -> torch.Tensor:
        return torch.ones(2, 1, 16, 1, 64, dtype=dtype)

    results = [
        liger.rms_norm(leaf(1, 16, 4096), leaf(4096), 1e-5),
        liger.swiglu(leaf(1, 16, 2 * 14336)),
        liger.rotary(leaf(1, 16, 48, 128), table(), 40),
        liger.fused_linear_cross_entropy(
            leaf(64, 256), leaf(32768, 256), torch.zeros(64, dtype=torch.long), 64
        ),
    ]
    for result in results:
        (2 * result.sum()).backward()  # one would be no scale


if __name__ == "__main__":
    json.dump(compiled(int(sys.argv[1])), sys.stdout)
