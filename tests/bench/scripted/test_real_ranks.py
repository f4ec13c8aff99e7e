"""A script's dry run counts what its real ranks do: collectives and FLOPs exactly, the peak too."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from bench.scripted.steps import Enough, Steps
from bench.simulator.device import Device
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks

SCRIPT = Path(__file__).parent / "scripts" / "train.py"


def measured(*arguments: str) -> dict[str, Any]:
    """Run the script on this real rank; return the counts of its second step."""
    torch.set_num_threads(1)
    steps = Steps(Device(has_streams=False), with_program=False)
    with (
        patch.object(sys, "argv", [str(SCRIPT), *arguments]),
        patch.object(dist, "init_process_group"),  # it is in one
        patch.object(dist, "destroy_process_group"),
        steps.metered(),
        pytest.raises(Enough),
    ):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return counts(steps)


def counts(steps: Steps) -> dict[str, Any]:
    found = steps.counted()
    sent: dict[str, float] = {}
    for call in found.calls:
        sent[call.collective] = sent.get(call.collective, 0) + float(call.bytes_sent)
    return {
        "sent": {name: round(sent[name]) for name in sorted(sent)},
        "matmul_flops": found.matmul_flops,
        "peak": found.peak.bytes,
    }


@pytest.mark.parametrize("how", ["fsdp", "tp", "ddp"])
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_dry_run_counts_what_real_ranks_do(tmp_path: Path, how: str, ranks: int) -> None:
    out = tmp_path / "counts.json"
    command = [sys.executable, "-m", "bench", "dry_run", "--device", "cpu"]
    command += ["--world_size", str(ranks), "--out", str(out), str(SCRIPT), how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    (expected, *_) = run_ranks(measured, ranks, how)
    assert found["comm_bytes"] == expected["sent"]
    assert found["matmul_flops"] == expected["matmul_flops"]
    assert found["peak_memory_bytes"] == pytest.approx(expected["peak"], rel=0.005)
