"""No flag, file or environment variable makes a command fail in another way than in one line.

A failure prints the smallest command and files that hypothesis finds for it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.cases import CASES, Case
from tests.fuzz.entry import check, digests, enter
from tests.support.paths import RESULTS

FEW = 15
"""Inputs of each kind in the default suite, the same in each run."""
MANY = int(os.environ.get("FUZZ_INPUTS", "300"))
"""Inputs of each kind in the long form, others in each run: 2,400 together."""
BYSTANDERS = {
    "notes.txt": b"the sea is deep\n",
    "rows.csv": b"name,colour\nsea,blue\n",
    "folder/kept.txt": b"kept\n",
    "method.py": b"METHOD = 3\n",
    "good.csv": (RESULTS / "limit.csv").read_bytes(),
}
"""Files of the user beside those of the command."""


def run(case: Case) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "a", "b")
        for name, content in (BYSTANDERS | case.files).items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        before = digests(Path(temporary))
        with contextlib.chdir(folder), patch.dict(os.environ, case.environment):
            ended = enter(*case.arguments, counts=case.counts)
        check(ended)
        after = digests(Path(temporary))
        if ended.status == 2:
            assert after == before, ended
        kept = before.keys() - {f"a/b/{name}" for name in case.may_change}
        assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}


def _fuzz(kind: str, examples: int, same_each_time: bool) -> None:
    @settings(
        max_examples=examples,
        derandomize=same_each_time,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(CASES[kind]())
    def inputs(case: Case) -> None:
        run(case)

    inputs()


@pytest.mark.parametrize("kind", CASES)
def test_a_few_inputs(kind: str) -> None:
    _fuzz(kind, FEW, same_each_time=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_many_inputs(kind: str) -> None:
    _fuzz(kind, MANY, same_each_time=False)


def test_a_traceback_is_noticed() -> None:
    with patch("bench.commands.run.main", side_effect=KeyError("no")), pytest.raises(KeyError):
        run(Case(["run"]))


def test_a_changed_file_is_noticed() -> None:
    def overwrite(_: object) -> int:
        Path("notes.txt").write_text("gone")
        return 0

    with patch("bench.commands.run.main", overwrite), pytest.raises(AssertionError):
        run(Case(["run"]))
