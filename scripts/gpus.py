"""The GPUs that PyTorch can use here: their number for run_example.sh, and a line for its reader.

    python -m scripts.gpus

Prints the largest power of two that is at most their number, which divides among all axes, and says
on stderr what was found. Exit status 1, and why, if PyTorch can use none.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import torch

_KERNELS = {
    "liger_kernel": "Liger",
    "flash_attn": "flash-attn",
    "flash_attn_interface": "FlashAttention-3",
}


def driver() -> str:
    """Return the version of NVIDIA's driver; "unknown" if nvidia-smi does not tell."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return next(iter(answer.stdout.split()), "unknown")


def usable(count: int) -> int:
    """Return the largest power of two that is at most `count`, which is at least 1."""
    return 1 << (count.bit_length() - 1)


def summary(count: int) -> str:
    """Return a line about this many GPUs, their driver and the kernels that are installed."""
    kernels = [name for module, name in _KERNELS.items() if importlib.util.find_spec(module)]
    kinds = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    unused = "" if usable(count) == count else f", of which {usable(count)} are used"
    return (
        f"{count} x {' and '.join(kinds)}{unused}; driver {driver()}, CUDA {torch.version.cuda}; "
        f"cuDNN {torch.backends.cudnn.version()}; kernels: {', '.join(['PyTorch', *kernels])}"
    )


def main() -> int:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        print(
            f"PyTorch {torch.__version__} can use no GPU here; NVIDIA's driver is {driver()}. "
            "PyTorch's wheels for CUDA 13 need driver 580 or newer; valid: a newer driver, a wheel "
            "for the driver's CUDA (docs/install.md), or CUDA_VISIBLE_DEVICES= for the CPU",
            file=sys.stderr,
        )
        return 1
    print(summary(count), file=sys.stderr)
    print(usable(count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
