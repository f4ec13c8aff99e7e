"""Tell exhausted memory from other errors by an exception's text, and a GPU's memory from the
host's.

Each library spells it in its own way, and only PyTorch's allocators have exceptions of their own.
"""

from __future__ import annotations

import re

_SIGNS = {
    # HostMemory refuses, or memory cannot be page-locked, which CUDA also calls out of memory.
    r"^HostMemoryError\b": "oom_cpu",
    r"^MemoryError\b": "oom_cpu",
    r"enforce fail at alloc_cpu\.cpp": "oom_cpu",
    r"DefaultCPUAllocator: can't allocate memory": "oom_cpu",
    r"\[Errno 12\] Cannot allocate memory": "oom_cpu",
    # PyTorch's allocator, CUDA itself, Triton's launcher, cuBLAS and cuDNN, NCCL's own buffers.
    r"^OutOfMemoryError\b": "oom_gpu",
    r"CUDA out of memory": "oom_gpu",
    r"CUDA error: out of memory": "oom_gpu",
    r"Triton Error \[CUDA\]: out of memory": "oom_gpu",
    r"CU(BLAS|BLASLT|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED": "oom_gpu",
    r"Failed to CUDA (host )?(c|m)alloc": "oom_gpu",
    r"Cuda failure \d* ?'out of memory'": "oom_gpu",
}
"""Regular expressions of messages, the most certain first, and the status of a cell's row."""


def status_of(text: str) -> str | None:
    """Return the status of a row whose cell failed with this text: oom_cpu or oom_gpu; None if no
    memory was exhausted.

    Args:
        text: The exception's class, a colon and its message, of any number of lines.
    """
    return next((status for sign, status in _SIGNS.items() if re.search(sign, text)), None)


def shortened(text: str) -> str:
    """Return the first line of an exception's text, and the line that tells of exhaustion if that
    is another one (NCCL's message has three)."""
    first, *others = text.strip().splitlines() or [""]
    if status_of(first) is None:
        return "; ".join([first, *[line for line in others if status_of(line)][:1]])
    return first
