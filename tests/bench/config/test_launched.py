"""Ranks as torchrun and srun give them to the processes that they start."""

from __future__ import annotations

import os
import re

import pytest

from bench.config.launched import is_first_rank, launched_world_size, own_rank

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "20",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_TASKS_PER_NODE": "4(x3),8",
    "SLURM_NODEID": "3",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *SLURM):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone
        monkeypatch.delenv(name)


def test_a_process_that_nobody_launched_is_the_first_rank() -> None:
    assert (own_rank(), is_first_rank(), launched_world_size()) == (0, True, None)


@pytest.mark.parametrize(("rank", "first"), [("0", True), ("3", False)])
def test_torchrun(rank: str, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (own_rank(), is_first_rank(), launched_world_size()) == (int(rank), first, 4)


def test_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's variables work also before they are translated to torch's."""
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert (own_rank(), is_first_rank()) == (5, False)
    assert launched_world_size() == 20

    assert [os.environ[name] for name in NAMES[:4]] == ["5", "20", "1", "8"]
    assert (own_rank(), is_first_rank()) == (5, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK is 4; valid with WORLD_SIZE = 4: 0 to 3"),
        ({"RANK": "one", "WORLD_SIZE": "4"}, "RANK is 'one'; valid: a whole number, at least 0"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0'; valid: a whole number, at least 1"),
        (SLURM | {"SLURM_LOCALID": None}, "SLURM_LOCALID is missing, but others of the same"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4(x"}, "PER_NODE is '4(x'; valid: the number of"),
    ],
)
def test_variables_that_fit_no_launcher(
    changes: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changes.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(message)):
        launched_world_size()
