"""Peak rates of GPUs by their vendors' data sheets."""

from __future__ import annotations

import re

PEAK_BF16_FLOPS_PER_S = {
    "A100": 312e12,
    "A800": 312e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "H800": 989e12,
    "H800 PCIe": 756e12,
    "H20": 148e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "B300": 2250e12,
    "GB300": 2500e12,
}
"""Dense bf16 FLOP/s by a part of the GPU's name (NVIDIA's data sheets, half of the rates with
sparsity): the peak of a measured row's MFU, and of the built-in hardware profiles. No public data
sheet of H800 and H20 was found: theirs are what vendors of servers print."""


def peak_bf16_flops_per_s(device_name: str) -> float | None:
    """Return a GPU's dense bf16 rate by its data sheet, in FLOP/s; None for an unknown GPU.

    The longest known name that stands in the device's name as whole words counts: "H100 PCIe"
    comes before "H100", and "H20" is not in "H200".

    Args:
        device_name: Name as ``torch.cuda.get_device_name`` prints it.
    """
    known = [gpu for gpu in PEAK_BF16_FLOPS_PER_S if re.search(rf"\b{gpu}\b", device_name)]
    return PEAK_BF16_FLOPS_PER_S[max(known, key=len)] if known else None
