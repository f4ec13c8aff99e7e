"""Calibrating the host: the time of a step outside its operations, with and without ZeRO."""

from __future__ import annotations

import time
from statistics import median
from unittest.mock import Mock, patch

import pytest
import torch

from bench.calibration import host
from bench.calibration.host import _steps, split
from bench.simulator import dry_run
from bench.simulator.program import HOOKS, Op
from odysseus.config.run import ModelOptions, RunConfig
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks

PROFILE = ROOT / "results" / "emulated" / "50mbit-1" / "profile.yml"


def test_hooks_are_the_time_of_zero_beyond_its_operations() -> None:
    """0.1 ms per operation and 2 ms per hook, on a machine that is sometimes three times slower."""
    paces = [1 if turn % 3 else 3 for turn in range(host._TURNS)]
    plain_s = [1e-4 * 100 * pace for pace in paces]
    zero_s = [(1e-4 * 120 + 2e-3 * 10) * pace for pace in paces]
    plain = Mock(ops=100, hooked=0, host_s=Mock(side_effect=plain_s))
    zero = Mock(ops=120, hooked=10, host_s=Mock(side_effect=zero_s))
    assert split(plain, zero) == pytest.approx((1e-4, 2e-3))


def hooks_of_small_steps(_: RunConfig) -> tuple[int, int]:
    with patch.object(host, "_TOKENS", 64):
        plain, zero = _steps(torch.device("cpu"))
    return plain.hooked, zero.hooked


def test_a_small_step_hooks_as_often_as_a_real_one() -> None:
    """Compare with a dry run of two blocks, whose ranks gather from each other."""
    found = run_ranks(hooks_of_small_steps, 2, RunConfig(world_size=2), fresh=True)
    run = RunConfig(
        method="ulysses",
        model=ModelOptions(num_hidden_layers=2),
        world_size=4,
        seq_len=64,
        dry_run=True,
        hardware=str(PROFILE),
    )
    program = dry_run.count(run, 0, True).program
    hooks = sum(isinstance(action, Op) and action.kind == HOOKS for action in program)
    assert found == [(0, hooks)] * 2
    assert hooks == 10


def host_s_of_a_slow_host(_: RunConfig) -> tuple[float, float]:
    """Return the seconds of a step, and of one whose host also sleeps for 50 ms and multiplies for
    about as long."""
    with patch.object(host, "_TOKENS", 64):
        _, step = _steps(torch.device("cpu"))
    x, once = torch.randn(1024, 1024), step.once

    def slowly() -> None:
        once()
        time.sleep(0.05)
        torch.mm(x, x)

    before_s = median(step.host_s() for _ in range(9))
    step.once = slowly
    return before_s, median(step.host_s() for _ in range(9))


@pytest.mark.slow
@pytest.mark.alone
def test_computing_time_is_not_host_time() -> None:
    ((before_s, after_s),) = run_ranks(host_s_of_a_slow_host, 1, RunConfig(), fresh=True)
    assert before_s > 0
    assert after_s - before_s == pytest.approx(0.05, rel=0.4)
