"""PyTorch's private names are in one file of odysseus, and PyTorch has each of them."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.private_names import private_names_of_torch

CHANGED = "torch changed: look at odysseus/parallel/fsdp_internals.py"

ALONE = ROOT / "odysseus" / "parallel" / "fsdp_internals.py"


def imported_from_torch() -> list[tuple[str, str]]:
    """(module, name) of each import of the one file from torch; that file is not imported."""
    imports = [n for n in ast.parse(ALONE.read_text()).body if isinstance(n, ast.ImportFrom)]
    of_torch = [n for n in imports if (n.module or "").split(".")[0] == "torch"]
    return [(str(node.module), alias.name) for node in of_torch for alias in node.names]


@pytest.mark.parametrize(("module", "name"), imported_from_torch())
def test_torch_has_what_is_imported_from_it(module: str, name: str) -> None:
    try:
        found = hasattr(importlib.import_module(module), name)
        found = found or importlib.import_module(f"{module}.{name}") is not None
    except ImportError:
        found = False
    assert found, f"{CHANGED}: no {name} in {module}"


def private_lines(files: list[Path]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in private_names_of_torch(ast.parse(file.read_text(encoding="utf-8")))
    ]


def test_no_other_file_uses_a_private_name_of_torch() -> None:
    files = sorted((ROOT / "odysseus").rglob("*.py"))
    assert private_lines([file for file in files if file != ALONE]) == []
    assert len(private_lines([ALONE])) > 10


@pytest.mark.parametrize(
    "line",
    [
        "from torch.distributed import _composable_state",
        "import torch._dynamo",
        "def late():\n    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter",
        "group = dist.distributed_c10d._get_default_group()",
        "module._get_fsdp_state()",
    ],
)
def test_a_private_name_is_found(line: str) -> None:
    assert list(private_names_of_torch(ast.parse(line))) != []
