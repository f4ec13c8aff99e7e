"""Signatures of FlashAttention's packages, whose kernels build on no machine without a GPU.

    python -m tests.fake_cuda.signatures flash_attn-VERSION.tar.gz

Reads those of FlashAttention 2 and 3 from the source archive of the pinned version and writes them
beside this file.
"""

from __future__ import annotations

import ast
import json
import sys
import tarfile
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

KEPT = Path(__file__).with_name("flash_attn.json")
_FUNCTIONS = {
    "flash_attn_func",
    "flash_attn_varlen_func",
    "_flash_attn_forward",
    "_flash_attn_backward",
}
_FILES = {
    "flash_attn.flash_attn_interface": "flash_attn/flash_attn_interface.py",
    "flash_attn_interface": "hopper/flash_attn_interface.py",
}
"""Files of the archive, by the name of the module that they become."""


def of_archive(archive: Path) -> dict[str, dict[str, str]]:
    """Return the arguments of each function, without their types, by module and name."""
    folder = archive.name.removesuffix(".tar.gz")
    found = {"pinned": {"flash-attn": folder.removeprefix("flash_attn-")}}
    with tarfile.open(archive) as packed:
        for module, path in _FILES.items():
            file = packed.extractfile(f"{folder}/{path}")
            assert file is not None, path
            found[module] = of_source(file.read().decode())
    return found


def of_source(source: str) -> dict[str, str]:
    """Return the same of one file."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name in _FUNCTIONS:
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
            found[node.name] = ast.unparse(node.args)
    return found


def module_of(name: str, compute: dict[str, Callable[..., Any]]) -> ModuleType:
    """Make a module with the kept signatures, whose functions compute something else.

    Args:
        compute: A function of keyword arguments for each name.
    """
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # so that it counts as installed
    for function, arguments in json.loads(KEPT.read_text())[name].items():
        given: dict[str, Any] = {"compute": compute[function]}
        exec(f"def {function}({arguments}): return compute(**locals())", given)
        setattr(module, function, given[function])
    return module


if __name__ == "__main__":
    KEPT.write_text(json.dumps(of_archive(Path(sys.argv[1])), indent=1) + "\n")
