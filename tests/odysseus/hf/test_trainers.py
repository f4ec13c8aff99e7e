"""Trainers that people use, on a prepared model over ranks: what they log and save is what the same
trainer logs and saves in one process, in fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.hf_models import ALL
from tests.support.hf_trainers import Training, assert_same, plain, split
from tests.support.marks import slow
from tests.support.ranks import run_ranks


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder and the log of Transformers' own training."""
    folder = tmp_path_factory.mktemp("plain")
    (log,) = run_ranks(plain, 1, Training(folder), fresh=True)
    return folder, log


@pytest.mark.parametrize(
    ("world_size", "shards", "toggles"),
    [
        (2, 2, ALL),
        *(slow(*case, t) for case in ((1, 1), (2, 2), (4, 4), (4, 2)) for t in ({}, ALL)),
    ],
)
def test_the_trainer(
    world_size: int,
    shards: int,
    toggles: dict[str, Any],
    tmp_path: Path,
    in_one_process: tuple[Path, Any],
) -> None:
    """Accumulation with unequal counts, padding, clipping, evaluation, saving."""
    training = Training(tmp_path, shards, toggles)
    assert_same(tmp_path, run_ranks(split, world_size, training, fresh=True), in_one_process)


@pytest.mark.slow
def test_the_trainer_goes_on_from_a_checkpoint(
    tmp_path: Path, in_one_process: tuple[Path, Any]
) -> None:
    """The log of both parts is that of one training; the checkpoint has the optimizer's state."""
    first = Training(tmp_path, 2, arguments={"max_steps": 2})
    run_ranks(split, 2, first, fresh=True)
    again = Training(tmp_path, 2, resume=str(tmp_path / "checkpoint-2"))
    assert_same(tmp_path, run_ranks(split, 2, again, fresh=True), in_one_process)
