"""Timing on a machine whose pace changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import Mock, patch

import pytest
import torch

from bench import cell, flops, stopwatch
from odysseus.config import RunConfig
from odysseus.data import Samples


def test_a_difference_is_measured_in_turn() -> None:
    """On a machine that is 1 % slower at every row: one after the other they differ by 0.06."""
    rows = itertools.count()

    def timed(action: Callable[[], float], calls: int, device: torch.device) -> float:
        return action() * 1.01 ** next(rows)

    with patch.object(stopwatch, "_timed", timed), patch.object(stopwatch, "_ROW_S", 10.0):
        extra = stopwatch.extra_s(lambda: 1.1, lambda: 1.0, torch.device("cpu"))
    assert extra == pytest.approx(0.1, rel=0.1)


def test_the_peak_is_measured_before_the_timed_steps_and_after_them() -> None:
    done: list[Any] = []
    peaks = iter([2e9, 4e9])

    def peak(*_: object) -> tuple[float, str]:
        done.append("peak")
        return next(peaks), "measured matmul"

    samples = cast(Samples, Mock(step=lambda index: index))
    run = RunConfig(warmup_steps=1, steps=2)
    with patch.object(flops, "peak_flops_per_s", peak):
        _, times_ms, found = cell.timed_steps(run, done.append, samples, torch.device("cpu"))
    assert done == [0, "peak", 1, 2, "peak"]
    assert found == (3e9, "measured matmul")
    assert len(times_ms) == 2
