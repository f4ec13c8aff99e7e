"""What a device is: its peak rate and how to wait for it."""

from __future__ import annotations

import time

import torch

# Dense bf16 FLOP/s by the vendors' data sheets (NVIDIA A100, H100, H200, B200 SXM).
_DATA_SHEET_BF16 = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12}


def peak_flops_per_s(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """What this rank's MFU is a fraction of, and where the number is from.

    A GPU computing in bf16 is held against its data sheet; anything else against the rate of a
    quarter second of large matmuls, timed here while every other rank does the same.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for gpu, flops in _DATA_SHEET_BF16.items():
            if gpu in name:
                return flops, "data sheet"
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
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
