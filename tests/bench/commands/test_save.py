"""A failure to write weights loses only the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors import SafetensorError

from bench.runner import rounds, worker
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.io import checkpoint
from tests.support.ranks import run_ranks

FULL = "Error while serializing: I/O error: No space left on device"


def measured(run: RunConfig, to: str, calls_that_work: int) -> dict[str, Any]:
    """Measure on a disk that is full after a number of files."""
    written = [None] * calls_that_work + [SafetensorError(FULL)]
    files = patch.object(checkpoint, "FILE_BYTES", 10**6)
    with files, patch.object(checkpoint, "save_file", side_effect=written) as save_file:
        found = worker.measure_in_group(run, torch.device("cpu"), to)
    return found | {"calls": save_file.call_count}


@pytest.mark.parametrize("calls_that_work", [0, 1])
def test_a_full_disk(tmp_path: Path, calls_that_work: int) -> None:
    """Every rank continues; the row has the reason and its numbers; no partial file remains."""
    model = ModelOptions(num_hidden_layers=2)
    run = RunConfig(model=model, seq_len=64, steps=1, warmup_steps=0, world_size=2)
    first, second = run_ranks(measured, 2, run, str(tmp_path / "saved"), calls_that_work)
    assert first["status"] == second["status"] == "error"
    assert first["error"] == f"save = {tmp_path / 'saved'}: {FULL}"
    row = rounds.merged([first], run)
    assert row["status"] == "error"
    assert row["step_ms_p50"] > 0
    assert (first["calls"], second["calls"]) == (calls_that_work + 1, 0)
    assert list(tmp_path.iterdir()) == []
