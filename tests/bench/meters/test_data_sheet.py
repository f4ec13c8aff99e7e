"""Data sheets are found by the names that PyTorch prints."""

from __future__ import annotations

import pytest

from bench.meters.data_sheet import peak_bf16_flops_per_s


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A800-SXM4-80GB", 312),
        ("NVIDIA A800 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GH200 144G HBM3e", 989),
        ("NVIDIA H800", 989),
        ("NVIDIA H800 PCIe", 756),
        ("NVIDIA H20", 148),
        ("NVIDIA H20-3e", 148),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B300 SXM6 AC", 2250),
        ("NVIDIA GB300", 2500),
    ],
)
def test_a_gpu_is_found_by_its_name(name: str, tflops: int) -> None:
    assert peak_bf16_flops_per_s(name) == tflops * 1e12


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090", "NVIDIA L20", "NVIDIA A10", "NVIDIA RTX A1000", "NVIDIA"]
)
def test_an_unknown_gpu_has_no_data_sheet(name: str) -> None:
    assert peak_bf16_flops_per_s(name) is None
