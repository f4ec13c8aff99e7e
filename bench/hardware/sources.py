"""Sources of the built-in profiles' numbers: a data sheet, a measurement or an assumption.

No GPU of this project confirmed any of them.
"""

from __future__ import annotations

SHEET, MEASURED, ASSUMED = KINDS = ("data sheet", "measured", "assumed")
"""Kinds of sources; every text below begins with one of them."""

_OOM = f'{MEASURED}: "total capacity" in PyTorch\'s out-of-memory messages'
_ML_ENGINEERING = "stas00/ml-engineering"
_NODE = {
    "memory_bytes": _OOM,
    "context_bytes": f"{ASSUMED}: users report about 1 GiB",
    "nccl_bytes": f"{ASSUMED}: users report 1 to 4 GiB",
    "nccl_peer_bytes": f"{ASSUMED}: as h100-80g",
    "workspace_bytes": f"{SHEET}: cuBLAS's recommendation, which PyTorch follows",
    "gpus_per_node": f"{SHEET}: NVIDIA DGX",
    "host_memory_bytes": f"{SHEET}: NVIDIA DGX",
}
_ATTENTION = "share of the peak; its curve by length is H100's, pytorch/benchmark#2391"
_FITTED = "fitted by scripts/validation/matmuls.py"
_OF_SHEET = "89 % of the data sheet, as on A800 in mli/transformers-benchmarks#4"
_SIMUMAX = f"{MEASURED}: MooreThreads/SimuMax, commit 4dcaae5"
_SPEEDS = _NODE | {
    "peak_flops_per_s": f"{SHEET}: dense bf16",
    "issue_s": f"{MEASURED}: this project's step on an Intel Xeon at 2.6 GHz, without a GPU",
    "hooks_s": f"{MEASURED}: this project's step on an Intel Xeon at 2.6 GHz, without a GPU",
    "multiprocessors": SHEET,
    "collective_multiprocessors": f"{MEASURED}: channels of eight H800, NVIDIA/nccl#892",
    "matmul": f"{MEASURED}: thousands of matmuls in microsoft/vidur, {_FITTED}",
    "attention": f"{MEASURED}: arXiv 2407.08608, a {_ATTENTION}",
    "memory": f"{MEASURED}: {_OF_SHEET}",
    "host_memory_bytes_per_s": f"{SHEET}: the memory channels of a DGX, an eighth per GPU",
    "to_host_bytes_per_s": f"{MEASURED}: PCIe 5 in {_ML_ENGINEERING}",
    "to_device_bytes_per_s": f"{MEASURED}: PCIe 5 in {_ML_ENGINEERING}",
    "network_bytes_per_s": f"{MEASURED}: all-reduces of 32 B200 in {_ML_ENGINEERING}, scaled to a "
    "card of 400 Gb/s",
    "links": f"{MEASURED}: all-reduces of eight H200 in {_ML_ENGINEERING}",
}
_A100 = _SPEEDS | {
    "attention": f"{MEASURED}: zhuzilin/ring-flash-attention's README on A100, a {_ATTENTION}",
    "to_host_bytes_per_s": f"{MEASURED}: PCIe 4 in {_ML_ENGINEERING}",
    "to_device_bytes_per_s": f"{MEASURED}: PCIe 4 in {_ML_ENGINEERING}",
    "network_bytes_per_s": f"{MEASURED}: all-reduces of 32 B200 in {_ML_ENGINEERING}, scaled to a "
    "card of 200 Gb/s",
    "links": f"{MEASURED}: an all-reduce of eight A100 in {_ML_ENGINEERING}; its curve by size is "
    "H200's",
}
# No public data sheet of H800 and H20 was found; those of A800 name no node.
_EXPORT = dict.fromkeys(
    ("gpus_per_node", "host_memory_bytes", "host_memory_bytes_per_s"), f"{ASSUMED}: as a DGX"
)
_TORCH_TEST = "zzc0721/torch-performance-test-data"
_SCALED = f"{ASSUMED}: as h100-80g, scaled by the rates of matmul"
SOURCES: dict[str, dict[str, str]] = {
    "a100-80g": _A100,
    "h100-80g": _SPEEDS
    | {
        "nccl_peer_bytes": f"{MEASURED}: 3.28 GB for seven peers on eight H100, NVIDIA/nccl#1685",
        "host_memory_bytes": f"{MEASURED}: the nodes of ALST, arXiv 2506.13996",
    },
    "h200-141g": _SPEEDS
    | dict.fromkeys(("matmul", "attention"), f"{ASSUMED}: as h100-80g, the same chip"),
    "b200-180g": _SPEEDS
    | {
        "matmul": f"{_SIMUMAX}, 514 matmuls, {_FITTED}",
        "attention": f"{MEASURED}: Dao-AILab/flash-attention#1589, a {_ATTENTION}",
        "memory": f"{_SIMUMAX}: 67 % of the data sheet",
        "network_bytes_per_s": f"{MEASURED}: all-reduces of 32 B200 in {_ML_ENGINEERING}",
        "links": f"{_SIMUMAX}: bandwidths and latencies of eight GPUs",
    },
    "b300": _NODE | {"host_memory_bytes": f"{ASSUMED}: as b200-180g"},
    "a800-80g": _A100
    | _EXPORT
    | {
        "peak_flops_per_s": f"{SHEET}: dense bf16, as A100",
        "matmul": f"{ASSUMED}: as a100-80g, the same chip",
        "attention": f"{ASSUMED}: as a100-80g, the same chip",
        "network_bytes_per_s": f"{ASSUMED}: as a100-80g, a card of 200 Gb/s",
        "links": f"{ASSUMED}: as a100-80g, scaled by NVLink's 400 of 600 GB/s",
    },
    "h800-80g": _SPEEDS
    | _EXPORT
    | {
        "memory_bytes": f"{ASSUMED}: as h100-80g, the same memory",
        "peak_flops_per_s": f"{ASSUMED}: as h100-80g, the same chip",
        "multiprocessors": f"{ASSUMED}: as h100-80g, the same chip",
        "matmul": f"{ASSUMED}: as h100-80g, the same chip",
        "attention": f"{ASSUMED}: as h100-80g, the same chip",
        "memory": f"{ASSUMED}: as h100-80g, the same memory",
        "network_bytes_per_s": f"{ASSUMED}: as h100-80g, a card of 400 Gb/s",
        "links": f"{ASSUMED}: as h100-80g, scaled by NVLink's 400 of 900 GB/s",
    },
    "h20": _SPEEDS
    | _EXPORT
    | {
        "memory_bytes": f"{ASSUMED}: as gh200, which has 96 GB of HBM3 too",
        "peak_flops_per_s": f"{ASSUMED}: 148 TFLOP/s in vendors' tables",
        "multiprocessors": f"{ASSUMED}: 78 in vendors' tables",
        "matmul": f"{MEASURED}: {_TORCH_TEST}#77",
        "attention": _SCALED,
        "memory": f"{ASSUMED}: 4.0 TB/s in vendors' tables, of which {_OF_SHEET}",
        "network_bytes_per_s": f"{ASSUMED}: as h100-80g, a card of 400 Gb/s",
        "links": f"{ASSUMED}: as h100-80g, NVLink of 900 GB/s in vendors' tables",
    },
    "h100-pcie": _SPEEDS
    | {
        "memory_bytes": f"{ASSUMED}: as h100-80g",
        "gpus_per_node": f"{ASSUMED}: servers differ",
        "host_memory_bytes": f"{ASSUMED}: servers differ",
        "matmul": f"{MEASURED}: {_TORCH_TEST}#95",
        "attention": _SCALED,
        "host_memory_bytes_per_s": f"{ASSUMED}: as h100-80g",
        "network_bytes_per_s": f"{ASSUMED}: as h100-80g, a card of 400 Gb/s for two GPUs",
        "links": f"{ASSUMED}: rings through PCIe 5 at to_host_bytes_per_s, without NVLink bridges",
    },
    "gh200": {field: text for field, text in _SPEEDS.items() if field != "links"}
    | {
        "memory_bytes": f"{_OOM}, Lightning-AI/litgpt#1892",
        "gpus_per_node": f"{ASSUMED}: one superchip per node",
        "host_memory_bytes": f"{SHEET}: 480 GB of LPDDR5X",
        "matmul": f"{ASSUMED}: as h100-80g, the same chip",
        "attention": f"{ASSUMED}: as h100-80g, the same chip",
        "host_memory_bytes_per_s": f"{SHEET}: 480 GB of LPDDR5X",
        "to_host_bytes_per_s": f"{MEASURED}: NVIDIA/nvbandwidth#23, 15 % less than to the device",
        "to_device_bytes_per_s": f"{MEASURED}: NVIDIA/nvbandwidth#23",
        "network_bytes_per_s": f"{ASSUMED}: as h100-80g, a card of 400 Gb/s",
    },
}
"""Text by profile and field. An empty curve and the fields without a number have none."""


def source(profile: str, field: str) -> str:
    """Return what a field of a built-in profile rests on; empty if that is not known."""
    return SOURCES.get(profile, {}).get(field, "")
