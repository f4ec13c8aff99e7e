"""One rank of the jobs of tests/bench/runner/test_join.py.

python -m tests.support.joined_job MEANWHILE VERB FLAG…

Rank 1 fails, unless MEANWHILE is waits:FILE, or stalls, where only rank 0 enters a collective; rank
0 meanwhile does what MEANWHILE names.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from bench.__main__ import main
from bench.runner import launch


def measure(*_: Any, **__: Any) -> dict[str, Any]:
    """Replace the measurement of a cell in a worker."""
    meanwhile, _, file = sys.argv[1].partition(":")
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    if meanwhile == "waits":
        Path(file).touch()
    elif os.environ["RANK"] == "1":
        if meanwhile != "stalls":
            raise torch.OutOfMemoryError("CUDA out of memory.")
    elif meanwhile in ("reduces", "stalls"):
        dist.barrier()
    time.sleep(100)
    return {}


if __name__ == "__main__":
    with patch.multiple(launch, measure=measure, measure_in_group=measure):
        sys.exit(main(sys.argv[2:]))
