"""Imports run downwards: scripts, bench, methods, odysseus; nothing imports tests or results.

Modules are read, not run: also imports inside functions count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "odysseus": {"odysseus"},
    "methods": {"odysseus", "methods"},
    "bench": {"odysseus", "methods", "bench"},
    "scripts": {"odysseus", "methods", "bench", "scripts"},
    "results": {"results"},
    "tests": {"odysseus", "methods", "bench", "scripts", "tests"},
}


def read_modules(root: Path) -> dict[str, ast.Module]:
    """Every module of the project by its dotted name; a package by its own."""
    modules = {}
    for folder in MAY_IMPORT:
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return modules


MODULES = read_modules(ROOT)


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a module imports: of `from a import b`, a.b, whatever b is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name their package in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def project_modules(tree: ast.Module) -> set[str]:
    """The project's modules that a module needs: the longest known part of every import.

    `from methods import tp` needs methods.tp. That Python also runs the package's `__init__`
    first does not count, or every package that gathers its modules would be a cycle.
    """
    needed = set()
    for name in imported(tree):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        needed.add(name)
    return needed - {""}


def test_the_project_is_read() -> None:
    assert {"odysseus", "odysseus.model.decoder", "methods", "methods.odysseus"} <= MODULES.keys()
    assert project_modules(MODULES["methods.odysseus"]) == {
        "methods.tp_sp",
        "methods.ulysses",
        "odysseus.method",
    }


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_run_downwards(folder: str) -> None:
    upwards = [
        f"{name} imports {other}"
        for name, tree in MODULES.items()
        if name.partition(".")[0] == folder
        for other in imported(tree)
        if other.partition(".")[0] in MAY_IMPORT.keys() - MAY_IMPORT[folder]
    ]
    assert upwards == []


@pytest.mark.parametrize("module", ["model", "kernels", "architecture", "attention"])
def test_single_process_code_knows_no_torch_distributed(module: str) -> None:
    tree = MODULES[f"odysseus.{module}"]
    used = set(imported(tree)) | {
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
    assert [name for name in used if f"{name}.".startswith("torch.distributed.")] == []


def test_no_cycle() -> None:
    graph = {name: project_modules(tree) for name, tree in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")
