"""The product's own code on a GPU that computes nothing: every method, ring and toggle runs, the
host waits only where the list says so, streams wait for what they need, in the predicted order."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from odysseus.config.pairs import NAMED
from tests.fake_cuda.cases import LAYOUTS, OPTIONS, Case, cases, dry_order
from tests.fake_cuda.faults import FAULTS
from tests.support.paths import ROOT

WAITS = {
    # whether any token of the step has a label, read when backward has been issued
    "odysseus/memory/readback.py: wait: event": 1,
}
OF_OPTIONS: dict[str, dict[str, int]] = {
    "optimizer_offload": {"odysseus/training/optimizer.py: update: copy cuda to cpu": 15},
    "optimizer_masters": {"odysseus/memory/offload.py: finish: event": 1},
    "parameter_offload": {
        "PyTorch: event": 15,  # FSDP2 waits for each gradient that it copies to the host
        "odysseus/training/trainer.py: grad_norm: copy cpu to cuda": 1,
    },
    # how many tokens each expert gets, which sizes what ranks exchange
    "shared out experts": {"odysseus/parallel/expert_parallel.py: of: tolist": 2},
}
"""Waits of the host in a step of two blocks, which have 15 tensors."""
Rows = dict[str, list[dict[str, Any]]]
EVERY = cases()


def sample() -> list[Case]:
    """Each option once, with other methods and ranks than the next one."""
    of_options = [[case for case in EVERY if case[3] == option] for option in OPTIONS]
    return [of[7 * place % len(of)] for place, of in enumerate(of_options)]


def outcomes(of: Sequence[Case | tuple[*Case, str]]) -> list[dict[str, Any]]:
    """Train each case, some with a fault, on the fake GPU, in one new process, which loads the
    device first."""
    command = [sys.executable, "-m", "tests.fake_cuda", "cases"]
    done = subprocess.run(
        command, input=json.dumps(of), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(of: list[Case], rows: list[dict[str, Any]]) -> None:
    """Every case trains; its host waits as listed, no operation begins before what it needs, and
    communication is in the order that a dry run predicts."""
    assert {case: row["error"] for case, row in zip(of, rows, strict=True) if row["error"]} == {}
    for case, row in zip(of, rows, strict=True):
        same = {"all": "parameter_offload", "fp32 masters": "optimizer_masters"}
        option = same.get(case[3], case[3])
        if option == "shared out experts" and case[1] == case[2]:
            option = "nothing"  # each rank of a pure ring has all experts
        assert row["waits"] == WAITS | OF_OPTIONS.get(option, {}), case
        assert row["races"] == [], case
        assert row["order"] == json.loads(json.dumps(dry_order(case))), case


OFFLOADED = ("ulysses", 2, 1, "activation_checkpoint_cpu_offload")


@pytest.fixture(scope="module")
def rows() -> Rows:
    """The outcomes of the sample, and by its name that of each fault."""
    sampled = sample()
    found = outcomes([*sampled, *((*OFFLOADED, fault) for fault in FAULTS)])
    of_faults = {fault: [row] for fault, row in zip(FAULTS, found[len(sampled) :], strict=True)}
    return of_faults | {"sample": found[: len(sampled)]}


def test_a_sample_of_all_cases(rows: Rows) -> None:
    sampled = sample()
    assert {case[0] for case in sampled} == NAMED.keys()
    assert {case[1:3] for case in sampled} == {*LAYOUTS}
    check(sampled, rows["sample"])


@pytest.mark.slow
def test_every_case() -> None:
    check(EVERY, outcomes(EVERY))


@pytest.mark.parametrize("fault", ["no wait for copies", "copies begin at once"])
def test_a_copy_that_does_not_wait_is_found(rows: Rows, fault: str) -> None:
    (row,) = rows[fault]
    assert row["error"] == ""
    assert any("does not wait for aten::copy_" in line for line in row["races"])


def test_a_value_that_is_read_is_found(rows: Rows) -> None:
    (row,) = rows["a value is read"]
    assert row["waits"].keys() - WAITS.keys()


def test_tensors_in_another_order_are_found(rows: Rows) -> None:
    (row,) = rows["keys before queries"]
    assert "scaled_dot_product" in row["error"]
