"""A process ends after gloo's threads have let go of what they hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

PROGRAM = """
import atexit, hashlib, sys, threading
import torch
from odysseus import RunConfig, make_mesh, start_process_group

def work():
    started.set()
    for _ in range(8):
        hashlib.sha256(data)  # without the interpreter's lock, like a thread of gloo's
    ended.set()

started, ended = threading.Event(), threading.Event()
data = bytes(4 * 2**20)
atexit.register(lambda: print(ended.is_set()))  # called last
start_process_group(torch.device("cpu"), timeout_s=60)
if sys.argv[1] == "mesh":
    make_mesh(torch.device("cpu"), RunConfig())
threading.Thread(target=work, daemon=True).start()
started.wait()
"""


def ended_before_the_interpreter(tmp_path: Path, what: str) -> bool:
    environment = {"RANK": "0", "WORLD_SIZE": "1", "ODYSSEUS_STORE": str(tmp_path / what)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return {"True": True, "False": False}[done.stdout.strip()]


def test_a_thread_ends_before_the_interpreter(tmp_path: Path) -> None:
    assert ended_before_the_interpreter(tmp_path, "mesh")
    assert not ended_before_the_interpreter(tmp_path, "group")
