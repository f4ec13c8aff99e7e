"""Triton's kernels that training launches compile for the GPUs that users have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

KERNELS = {
    *("_rms_norm_forward_kernel", "_rms_norm_backward_kernel", "_triton_rope"),
    *("_swiglu_fused_gate_up_forward_kernel", "_swiglu_fused_gate_up_backward_kernel"),
    *("liger_cross_entropy_kernel", "element_mul_kernel"),
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_kernel_compiles(capability: int, tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.fake_cuda.kernels", str(capability)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout)
    assert sizes.keys() == KERNELS
    assert min(sizes.values()) > 1000
