"""Columns that come from several ranks: the slowest one's times, the most memory."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import torch

from bench.meters.load import Interval
from bench.runner import rounds, worker
from odysseus.config.run import RunConfig


def test_the_slowest_rank_is_the_step() -> None:
    """Three steps, in which the slowest rank changes from step to step."""
    meanwhile = Interval("a", wall_s=1, own_s=1, machine_s=3)
    times_by_rank = [[10.0, 40.0, 20.0], [30.0, 5.0, 25.0]]
    reports = [{"ms": times_ms, "meanwhile": meanwhile} for times_ms in times_by_rank]
    with patch.object(worker, "gathered", lambda own: reports):
        device = torch.device("cpu")
        found = worker.timed_columns(RunConfig(), times_by_rank[0], meanwhile, device)
    assert found[rounds.TIMES] == [30, 40, 25]
    assert found[rounds.PEAK] is None
    assert found["other_load"] == 1


def test_host_memory_and_activations_are_the_most_of_any_rank() -> None:
    """The rank with the highest peak on the device may have less of either."""
    names = ("peak_memory_bytes", "peak_memory_optimizer_bytes")
    names += ("peak_activation_bytes", "peak_host_bytes")
    ranks = [dict(zip(names, of, strict=True)) for of in ((9, 5, 1, 2), (8, 6, 3, 4))]
    assert [*worker.memory_of(ranks).values()] == [9, 5, 3, 4]


def test_memory_of_a_compiled_cell_is_that_of_its_timed_steps() -> None:
    """The metered step runs without compilation."""
    peak = {"peak_memory_bytes": 5}
    stands_for = {
        "start": lambda run, device: (SimpleNamespace(step=None), None),
        "timed_steps": lambda *given: ([], [], None),
        "timed_columns": lambda *given: {rounds.TIMES: []},
        "_number_columns": lambda results: {},
        "allocator_peak": lambda device: peak,
        "gathered": lambda own: [own],
        "metered_columns": lambda *given: {"peak_memory_bytes": 9},
    }
    run, cpu = RunConfig(), torch.device("cpu")
    with patch.multiple(worker, **stands_for):
        plain = worker.measure_in_group(run, cpu)
        compiled = worker.measure_in_group(replace(run, compile=True), cpu)
    assert (plain["peak_memory_bytes"], compiled["peak_memory_bytes"]) == (9, 5)
