"""A device's peak rate, and waiting for a device."""

from __future__ import annotations

import time

import torch

from bench.meters.data_sheet import peak_bf16_flops_per_s


def peak_flops_per_s(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return the peak rate that this rank's MFU is a fraction of, in FLOP/s, and its source.

    For a GPU in bf16 that is its data sheet's rate. For everything else it is the rate of large
    matmuls, measured here for a quarter of a second while every other rank measures too.
    """
    known = None
    if device.type == "cuda" and dtype == torch.bfloat16:
        known = peak_bf16_flops_per_s(torch.cuda.get_device_name(device))
    if known:
        return known, "data sheet"
    size = 4096 if device.type == "cuda" else 512
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    torch.mm(a, b)
    synchronize(device)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < 0.25:
        torch.mm(a, b)
        synchronize(device)
        done += 1
    return done * 2 * size**3 / (time.perf_counter() - start), "measured matmul"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work that was issued to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
