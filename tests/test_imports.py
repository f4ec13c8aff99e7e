"""Imports run downwards: scripts, bench, methods, odysseus; and between the packages of a folder.

Nothing imports tests or results.
Modules are read, not run: also imports inside functions count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MAY_IMPORT = {
    "odysseus": {"odysseus"},
    "methods": {"odysseus", "methods"},
    "bench": {"odysseus", "methods", "bench"},
    "scripts": {"odysseus", "methods", "bench", "scripts"},
    "results": {"results"},
    "tests": {"odysseus", "methods", "bench", "scripts", "tests"},
}
# The packages and modules directly inside a top folder, from the lowest level up; those of one
# level do not import each other. docs/architecture.md draws the same order.
LEVELS = {
    "odysseus": (
        {"config"},
        {"memory"},
        {"model"},
        {"parallel"},
        {"method"},
        {"io"},
        {"hf"},
        {"training"},
    ),
    "bench": (
        {"meters", "safe_yaml"},
        {"theory", "hardware"},
        {"simulator"},
        {"config", "rows", "pool", "provenance", "calibration", "scripted"},
        {"planner", "runner", "validation"},
        {"report"},
        {"commands"},
        {"__main__"},
    ),
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
def test_imports_between_top_folders_run_downwards(folder: str) -> None:
    upwards = [
        f"{name} imports {other}"
        for name, tree in MODULES.items()
        if name.partition(".")[0] == folder
        for other in imported(tree)
        if other.partition(".")[0] in MAY_IMPORT.keys() - MAY_IMPORT[folder]
    ]
    exported = [f"odysseus imports methods.{name}" for name in ("METHODS", "method_of")]
    assert upwards == (exported if folder == "odysseus" else [])


def level(name: str) -> int | None:
    """The level of a module's package within its top folder; None for the folder's own face."""
    top, _, inside = name.partition(".")
    part = inside.partition(".")[0]
    return next((at for at, parts in enumerate(LEVELS[top]) if part in parts), None)


def upward_imports(top: str, modules: dict[str, ast.Module]) -> list[str]:
    """Imports within a top folder that do not lead to a lower level, or to the own package."""
    return [
        f"{name} imports {other}"
        for name, tree in modules.items()
        if name.startswith(f"{top}.")
        for other in project_modules(tree)
        if other.startswith(f"{top}.") and other.split(".")[1] != name.split(".")[1]
        if (level(other) or 0) >= (level(name) or 0)
    ]


@pytest.mark.parametrize("top", LEVELS)
def test_imports_inside_a_top_folder_run_downwards(top: str) -> None:
    assert [name for name in MODULES if name.startswith(f"{top}.") and level(name) is None] == []
    assert upward_imports(top, MODULES) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("odysseus.model.layers", "from odysseus.parallel import mesh"),
        ("odysseus.config.run", "from odysseus.training.trainer import Trainer"),
        ("bench.simulator.program", "from bench.report import chart"),
        ("bench.planner.longest", "from bench.runner import launch"),
        ("bench.meters.traffic", "def late():\n    from bench.theory import traffic"),
    ],
)
def test_a_deliberate_upward_import_is_found(name: str, line: str) -> None:
    found = upward_imports(name.partition(".")[0], MODULES | {name: ast.parse(line)})
    assert len(found) == 1
    assert found[0].startswith(f"{name} imports ")


def imports_of_test_files(modules: dict[str, ast.Module]) -> list[str]:
    """Imports of a file with tests, by whichever module of tests/."""
    return [
        f"{name} imports {other}"
        for name, tree in modules.items()
        if name.startswith("tests.")
        for other in project_modules(tree)
        if other.rpartition(".")[2].startswith("test_")
    ]


def test_no_test_imports_another_tests_file() -> None:
    """Shared helpers and fixtures live in tests/support."""
    assert imports_of_test_files(MODULES) == []
    line = ast.parse("from tests.methods.test_parity import test_parity")
    found = imports_of_test_files(MODULES | {"tests.bench.test_rows": line})
    assert found == ["tests.bench.test_rows imports tests.methods.test_parity"]


def test_the_order_is_drawn_in_the_architecture() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    (drawn,) = re.findall(r"^odysseus/ +bench/\n\n((?:.+\n)+)```", page, re.MULTILINE)
    for top, columns in (("odysseus", slice(0, 32)), ("bench", slice(32, None))):
        levels = [set(line[columns].split()) for line in reversed(drawn.splitlines())]
        assert [level for level in levels if level] == list(LEVELS[top])


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("odysseus.model.")])
def test_single_process_code_knows_no_torch_distributed(module: str) -> None:
    tree = MODULES[module]
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
