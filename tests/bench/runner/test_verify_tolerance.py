"""The tolerance of a training: that of the coarsest dtype to which its numbers are rounded."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench.__main__ import main
from tests.support.small_runs import VERIFIED


@pytest.mark.slow
def test_gradients_that_travel_in_bf16_are_judged_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"{VERIFIED} --seq_parallel_communication_data_type bf16 --out {tmp_path / 'v.csv'}"
    assert main(["verify", *flags.split()]) == 0
    assert "tolerance 1e-10" in capsys.readouterr().out  # fp64 runs reduce in fp64
    assert main(["verify", *flags.split(), "--dtype", "fp32"]) == 0
    assert "tolerance 0.02 (bf16" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "v.csv")["grad_norm_difference"].max() > 1e-6
