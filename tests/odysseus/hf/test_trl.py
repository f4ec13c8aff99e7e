"""TRL's trainers on a prepared model over ranks log and save what they do in one process, in
fp64."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.hf_models import ALL
from tests.support.hf_trainers import Training, assert_same
from tests.support.hf_trl import dpo, sft
from tests.support.marks import slow
from tests.support.ranks import run_ranks

LOOPS = {"sft": partial(sft, packed=False), "sft packed": partial(sft, packed=True), "dpo": dpo}
QUICK = [("sft", 2, 2, ALL), ("dpo", 2, 2, ALL)]
RANKS = [(1, 1), (2, 2), (2, 1), (4, 4), (4, 2)]
EVERY = [(loop, *ranks, t) for loop in LOOPS for ranks in RANKS for t in ({}, ALL)]


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """The folder and the log of TRL's own trainings, as far as asked for."""
    return {}


@pytest.mark.parametrize(
    ("loop", "world_size", "shards", "toggles"),
    [*QUICK, *(slow(*case) for case in EVERY if case not in QUICK)],
)
def test_as_in_one_process(
    loop: str,
    world_size: int,
    shards: int,
    toggles: dict[str, Any],
    tmp_path: Path,
    in_one_process: dict[str, tuple[Path, Any]],
) -> None:
    """Accumulation, padding, clipping, evaluation, saving; with a reference for preferences."""
    if loop not in in_one_process:
        folder = tmp_path / "plain"
        (log,) = run_ranks(LOOPS[loop], 1, Training(folder, 0), fresh=True)
        in_one_process[loop] = folder, log
    training = Training(tmp_path, shards, toggles)
    logs = run_ranks(LOOPS[loop], world_size, training, fresh=True)
    assert_same(tmp_path, logs, in_one_process[loop])
