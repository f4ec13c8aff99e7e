"""Every spelling of exhausted memory, and what is not one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from bench.runner import exhaustion, fork_server
from odysseus.memory.host_memory import HostMemoryError

NCCL = (
    "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, unhandled cuda error "
    "(run with NCCL_DEBUG=INFO for details), NCCL version 2.29.7\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\n"
)
SPELLINGS: list[tuple[BaseException, str]] = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "oom_gpu"),
    (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"), "oom_gpu"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "oom_gpu"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "oom_gpu"),
    (RuntimeError("Triton Error [CUDA]: out of memory"), "oom_gpu"),
    (dist.DistBackendError(NCCL + "Failed to CUDA calloc async 608 bytes"), "oom_gpu"),
    (dist.DistBackendError(NCCL + "Cuda failure 2 'out of memory'"), "oom_gpu"),
    (HostMemoryError("allocating host memory: CUDA error: out of memory"), "oom_cpu"),
    (MemoryError("no more"), "oom_cpu"),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: "),
        "oom_cpu",
    ),
    (OSError(12, "Cannot allocate memory"), "oom_cpu"),
]
OTHERS: list[BaseException] = [
    dist.DistBackendError(NCCL + "Connection closed by remote peer"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448"),
    ValueError("seq_len = 3 does not divide"),
    RuntimeError(""),
]


@pytest.mark.parametrize(("error", "status"), SPELLINGS, ids=lambda x: str(x)[:30])
def test_each_spelling(error: BaseException, status: str) -> None:
    """One line still tells it, and it is no consequence of another rank's end."""
    line = fork_server.described(error)
    assert "\n" not in line
    assert exhaustion.status_of(line) == status
    assert line.startswith(type(error).__name__)
    assert not fork_server.follows_another(error)


@pytest.mark.parametrize("error", OTHERS, ids=lambda x: str(x)[:30])
def test_what_is_something_else(error: BaseException) -> None:
    assert exhaustion.status_of(fork_server.described(error)) is None


def test_a_peer_that_has_gone_is_followed() -> None:
    assert fork_server.follows_another(OTHERS[0])
    assert fork_server.follows_another(RuntimeError("[../gloo/transport/tcp/pair.cc:534] closed"))
