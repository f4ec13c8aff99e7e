"""Timing on a machine whose speed changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch

from bench.calibration import stopwatch


def test_a_difference_is_measured_in_turn() -> None:
    """The machine is 1 % slower at every batch: measured one after the other, both actions would
    differ by 0.06."""
    rows = itertools.count()

    def timed(action: Callable[[], float], calls: int, device: torch.device) -> float:
        return action() * 1.01 ** next(rows)

    with patch.object(stopwatch, "_timed", timed), patch.object(stopwatch, "_BATCH_S", 10.0):
        extra = stopwatch.extra_s(lambda: 1.1, lambda: 1.0, torch.device("cpu"))
    assert extra == pytest.approx(0.1, rel=0.1)
