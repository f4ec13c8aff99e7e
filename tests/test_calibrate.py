"""Calibration: a profile of every link and shape, that a prediction can be made from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from bench import calibrate, dryrun, hardware
from bench.__main__ import main
from odysseus.config import RunConfig
from tests.ranks import run_ranks


def profile(run: RunConfig) -> dict[str, Any]:
    """Of this rank, from short rows."""
    torch.set_num_threads(1)
    with patch.object(calibrate, "_ROW_S", 1e-4), patch.object(calibrate, "_LONGEST_S", 1e-4):
        return asdict(calibrate.measure(run, torch.device("cpu")))


def test_four_ranks_and_a_prediction_from_them(tmp_path: Path) -> None:
    one, *others = run_ranks(profile, 4, RunConfig(world_size=4))
    assert all(other == one for other in others)  # the slowest rank's, on every rank
    links = one["speeds"]["links"]
    assert one["speeds"]["hooks_s"] > 0
    kinds = {link["collective"] for link in links}
    assert kinds == {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "p2p"}
    assert sorted(link["ranks"] for link in links) == [2] * 10 + [4] * 5  # near and far pairs
    assert all(y > 0 for link in links for _, y in link["points"])
    (attention,) = one["speeds"]["attention"].values()
    ways = {"forward", "backward", "whole_forward", "whole_backward"}
    assert {way for way, points in attention.items() if points} == ways
    file = tmp_path / "this.yml"
    file.write_text(hardware.as_yaml(one))
    out = tmp_path / "rows.csv"
    flags = f"--dry_run true --hardware {file} --world_size 4 --seq_len 64 --out {out}"
    assert main(["run", *flags.split()]) == 0
    run = RunConfig(dry_run=True, hardware=str(file), world_size=4)
    known = dryrun.clock(run)
    assert known is not None
    assert known.attention == "sdpa"


def test_a_difference_is_measured_in_turn() -> None:
    """On a machine that is 1 % slower at every row: one after the other they differ by 0.06."""
    rows = itertools.count()

    def timed(action: Callable[[], float], calls: int, device: torch.device) -> float:
        return action() * 1.01 ** next(rows)

    with patch.object(calibrate, "_timed", timed), patch.object(calibrate, "_ROW_S", 10.0):
        extra = calibrate._extra_s(lambda: 1.1, lambda: 1.0, torch.device("cpu"))
    assert extra == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--out profile.csv", "ending in .yml"),
        ("--dry_run true", "nothing to measure"),
        ("--out no/profile.yml", "cannot be written"),
    ],
)
def test_bad_input(flags: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
