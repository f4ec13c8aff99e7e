"""The fake CUDA device, compiled against the installed PyTorch, and loaded before PyTorch."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")


def load() -> None:
    """Load the device into this process, which must not have imported PyTorch yet."""
    ctypes.CDLL(str(built()), mode=ctypes.RTLD_GLOBAL)


def built() -> Path:
    """Compile the device, unless this source has been compiled for this PyTorch; return the
    library."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None, "PyTorch is installed"
    assert spec.origin is not None, "it has a file"
    torch = Path(spec.origin).parent
    digest = hashlib.sha256(SOURCE.read_bytes() + (torch / "version.py").read_bytes())
    folder = Path(tempfile.gettempdir(), f"odysseus-fake-cuda-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{digest.hexdigest()[:16]}.so"
    if not library.exists():
        beside = library.with_suffix(f".{os.getpid()}")
        options = ["-std=c++20", "-O0", "-shared", "-fPIC", f"-I{torch / 'include'}"]
        options += [f"-I{torch / 'include/torch/csrc/api/include'}", str(SOURCE), "-o", str(beside)]
        options += [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-lc10", "-ltorch_cpu"]
        subprocess.run(["g++", *options, f"-Wl,-rpath,{torch / 'lib'}"], check=True)
        beside.rename(library)
    return library
