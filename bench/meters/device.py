"""Peak rates of a device, its memory, and waiting for it."""

from __future__ import annotations

import time

import torch

from bench.meters.data_sheet import peak_bf16_flops_per_s


def data_sheet_flops_per_s(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the peak rate of a GPU by its data sheet, which MFU is a fraction of; None if it has
    none for this dtype. A CPU has none: its ranks share cores, and its clock follows the load."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        return peak_bf16_flops_per_s(torch.cuda.get_device_name(device))
    return None


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate of large matmuls, measured for a quarter of a second while every other rank
    measures too."""
    size = 4096 if device.type == "cuda" else 512
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    torch.mm(a, b)
    synchronize(device)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < 0.25:
        torch.mm(a, b)
        synchronize(device)
        done += 1
    return done * 2 * size**3 / (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work that was issued to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Forget the most bytes that a GPU's allocator has held."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def allocator_peak(device: torch.device) -> dict[str, int]:
    """Return the columns of the most bytes that a GPU's allocator has held and reserved since
    :func:`reset_peak`. It also counts the workspace of kernels, which the memory meter does not
    see. Empty on a CPU."""
    if device.type == "cpu":
        return {}
    return {
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
    }
