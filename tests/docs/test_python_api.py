"""The documented Python API: its example runs as the page prints it, every name is explained."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import odysseus
from methods import METHODS
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "python-api.md").read_text()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's example as a file in an empty folder."""
    (text,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in text.splitlines() if line]) == 15
    file = tmp_path_factory.mktemp("api") / "step.py"
    file.write_text(text)
    return file


def printed(example: Path, ranks: int) -> list[float]:
    """The losses and gradient norms that the example prints."""
    assert f"torchrun --nproc_per_node {ranks} step.py\n" in PAGE
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc_per_node", str(ranks), example.name],
        cwd=example.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^step \d: loss (\S+), gradient norm (\S+)$", done.stdout, re.MULTILINE)
    return [float(number) for line in lines for number in line]


def test_the_example_prints_the_same_on_one_and_two_ranks(example: Path) -> None:
    one, two = printed(example, 1), printed(example, 2)
    assert len(one) == 6
    # Two fp32 sums in another order, printed to four digits after the point.
    assert two == pytest.approx(one, abs=5e-3)
    assert one[4] < one[0]


@pytest.mark.parametrize("name", odysseus.__all__)
def test_every_exported_name_is_there_and_explained(name: str) -> None:
    exported = getattr(odysseus, name)
    assert exported is METHODS if name == "METHODS" else exported.__name__ == name
    assert re.search(rf"^\| `{name}\b", PAGE, re.MULTILINE)


def test_no_other_name_is_exported() -> None:
    assert sorted(name for names in odysseus._MODULES.values() for name in names) == sorted(
        odysseus.__all__
    )
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = odysseus.nothing


def test_importing_it_does_not_import_torch() -> None:
    code = "import odysseus, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
