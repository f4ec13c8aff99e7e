"""The product's own code on a GPU that computes nothing: every method, ring and toggle runs, and
its host waits for the GPU only where the list says so."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from methods import METHODS
from tests.fake_cuda.cases import LAYOUTS, OPTIONS, Case, cases
from tests.support.paths import ROOT

LABELS = "odysseus/training/trainer.py: forward_backward: _local_scalar_dense"
"""Whether any token of the step has a label."""
OFFLOADS = {
    "optimizer_offload": {"odysseus/training/optimizer.py: update: copy cuda to cpu"},
    "parameter_offload": {
        "PyTorch: event",  # FSDP2 waits for each gradient that it copies to the host
        "odysseus/training/trainer.py: grad_norm: copy cpu to cuda",
    },
}
"""The waits for each tensor of what an option offloads."""
EVERY = cases()


def sample() -> list[Case]:
    """Each option once, with other methods and ranks than the next one."""
    of_options = [[case for case in EVERY if case[3] == option] for option in OPTIONS]
    return [of[7 * place % len(of)] for place, of in enumerate(of_options)]


def outcomes(of: list[Case]) -> list[dict[str, Any]]:
    """Train each case on the fake GPU, in one new process, which loads the device first."""
    command = [sys.executable, "-m", "tests.fake_cuda"]
    done = subprocess.run(
        command, input=json.dumps(of), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(of: list[Case]) -> None:
    found = dict(zip(map(tuple, of), outcomes(of), strict=True))
    assert {case: row["error"] for case, row in found.items() if row["error"]} == {}
    for case, row in found.items():
        option = "parameter_offload" if case[3] == "all" else case[3]
        assert row["waits"].keys() == {LABELS} | OFFLOADS.get(option, set()), case
        assert row["waits"][LABELS] == 1, case


def test_a_sample_of_all_cases() -> None:
    sampled = sample()
    assert {case[0] for case in sampled} == METHODS.keys()
    assert {case[1:3] for case in sampled} == {*LAYOUTS}
    check(sampled)


@pytest.mark.slow
def test_every_case() -> None:
    check(EVERY)
