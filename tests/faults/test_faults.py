"""A fault at a random moment is no traceback and no hang; no row and no process is left behind.

A failure prints the seed of its trial: ``python -m tests.faults SEED`` holds it again.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.trials import held

FEW = (67,)
"""Seeds of the default suite."""
MANY = 50


@pytest.mark.parametrize("seed", FEW)
def test_a_few_trials(seed: int) -> None:
    assert held(seed).harms == []


@pytest.mark.slow
@pytest.mark.alone
def test_many_trials() -> None:
    first = int(time.time())
    with ThreadPoolExecutor(2) as pool:
        verdicts = [*pool.map(held, range(first, first + MANY))]
    assert [verdict for verdict in verdicts if verdict.harms] == []
