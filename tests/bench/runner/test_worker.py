"""Columns of time: a step takes as long as its slowest rank."""

from __future__ import annotations

import pytest

from bench.runner import worker
from odysseus.config.run import RunConfig


def test_the_slowest_rank_is_the_step() -> None:
    """Three steps, in which the slowest rank changes from step to step."""
    times_by_rank = [[10.0, 40.0, 20.0], [30.0, 5.0, 25.0]]  # the slowest: 30, 40, 25
    run = RunConfig(world_size=2, seq_len=1000)
    columns = worker.time_columns(run, times_by_rank, peak_flops=1e12)
    assert columns["step_ms_p50"] == 30.0
    assert columns["step_ms_p20"] == pytest.approx(27.0)
    assert columns["step_ms_p80"] == pytest.approx(36.0)
    assert columns["tokens_per_s"] == pytest.approx(1000 / 0.030)
    assert columns["tokens_per_s_per_gpu"] == pytest.approx(500 / 0.030)
