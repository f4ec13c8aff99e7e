"""Peak rates of GPUs by their vendors' data sheets."""

from __future__ import annotations

PEAK_BF16_FLOPS_PER_S = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 FLOP/s by a part of the GPU's name (NVIDIA's data sheets of A100, H100, H200 and B200
SXM): the peak of a measured row's MFU, and of the built-in hardware profiles."""
