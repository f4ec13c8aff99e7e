"""Trials: a command, a fault, and the harm that it does. All follow from the trial's seed."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from bench import rows
from tests.faults.faults import COMMANDS, FAULTS, SECONDS, WRITE_ROWS, Trial
from tests.support.paths import ROOT

_CACHE = "torchinductor_"
"""Name of the folder that torch keeps for compiled code, the same for all its processes."""
_MARK = "ODYSSEUS_TRIAL"
"""Environment variable by which the processes of a trial are found."""
_MOST_BYTES = 3_000_000_000
"""Memory that the processes of a trial may hold together."""
_OUT = {"verify": "--out rows.csv", "theory": "", "map": "--map rows", "report": "--out page"}
_NO_SHARED_MEMORY = ["unshare", "--mount", "sh", "-c"]
_NO_SHARED_MEMORY += ['mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "$@"', "sh"]
"""Command that runs another one with a full /dev/shm, which takes root."""


@dataclass(frozen=True)
class Verdict:
    """A trial, and a line for each harm that was found."""

    trial: str
    harms: list[str]


def held(seed: int) -> Verdict:
    """Hold a trial and judge it."""
    random = Random(seed)
    fault = random.choice([*FAULTS])
    act, commands = FAULTS[fault]
    command = random.choice(commands)
    about = f"seed {seed}: {command}, {fault}"
    with tempfile.TemporaryDirectory() as temporary:
        folder, temporaries = Path(temporary, "work"), Path(temporary, "temporary")
        folder.mkdir()
        temporaries.mkdir()
        with _small_disk(folder, fault == "disk filled"):
            bystander = folder / "README.md"
            bystander.write_text("not theirs\n")
            mark = hashlib.sha256(temporary.encode()).hexdigest()
            process = _start(command, folder, temporaries, mark, fault, random)
            trial = Trial(random, command, folder, process)
            try:
                with _memory(process.pid) as held_bytes:
                    act(trial)
                    harms = [*_judged(trial)]
                if max(held_bytes) > _MOST_BYTES:
                    harms.append(f"memory: {max(held_bytes):,} bytes")
                if fault != "folder removed" and bystander.read_text() != "not theirs\n":
                    harms.append("overwritten: README.md")
                harms += [f"left: {name}" for name in _left(mark)]
                litter = (p for p in temporaries.iterdir() if not p.name.startswith(_CACHE))
                harms += [f"litter: {path.name}" for path in litter]
            finally:
                for found in _marked(mark):
                    found.kill()
                process.communicate()
    return Verdict(about, harms)


def _start(
    command: str, folder: Path, temporaries: Path, mark: str, fault: str, random: Random
) -> subprocess.Popen[str]:
    environment = {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporaries), _MARK: mark}
    paths = [str(ROOT)]
    if fault == "slow names":
        paths.append(str(Path(__file__).parent / "slow_names"))
    most = random.randrange(24, 64) if fault == "few descriptors" else 1024

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    arguments = f"{COMMANDS[command]} {_OUT.get(command, '--out rows.csv')}".split()
    before = _NO_SHARED_MEMORY if fault == "no shared memory" and not os.geteuid() else []
    return subprocess.Popen(
        [*before, sys.executable, "-m", "bench", *arguments],
        cwd=folder,
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limited,
    )


def _judged(trial: Trial) -> Iterator[str]:
    """Yield each harm of a trial whose fault has happened."""
    process = trial.process
    try:
        if process.stdout and process.stdout.closed:
            process.stdout = None
        _, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        yield f"hang: over {SECONDS} s"
        return
    for sign in ("Traceback", "terminate called", "Fatal Python error"):
        if sign in err:
            yield f"traceback: {err[-2000:]}"
    status, expected = process.returncode, trial.status
    if expected is not None and status != expected:
        yield f"status: {status}, not {expected}: {err[-500:]}"
    if expected is None and status not in (0, 1, 2, -signal.SIGKILL):
        yield f"status: {status}: {err[-500:]}"
    if trial.damages or trial.command not in WRITE_ROWS:
        return
    if lost := set(trial.before or ()) - set(trial.lines()):
        yield f"lost: {lost}"
    if trial.out.exists() and not set(rows.read(trial.out)["status"]) <= {
        *("ok", "error", "timeout", "oom_cpu"),
    }:
        yield f"rows: {trial.lines()}"


@contextmanager
def _memory(pid: int) -> Iterator[list[int]]:
    """Append, four times a second, the bytes that a process and its descendants hold."""
    found, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                family = [process, *process.children(recursive=True)]
                found.append(sum(_own_bytes(one) for one in family))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _own_bytes(process: psutil.Process) -> int:
    """Return the memory of a process without what it shares through files; 0 if it has ended."""
    with suppress(psutil.Error):
        memory = process.memory_info()
        return memory.rss - memory.shared
    return 0


def _marked(mark: str) -> Iterator[psutil.Process]:
    """Yield every process of a trial."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == mark and process.status() != "zombie":
                yield process


def _left(mark: str) -> list[str]:
    """Return the processes that are still there after ten seconds."""
    end = time.monotonic() + 10
    while (found := [*_marked(mark)]) and time.monotonic() < end:
        time.sleep(0.05)
    names = []
    for process in found:
        with suppress(psutil.Error):
            names.append(f"{process.pid} {process.status()} {' '.join(process.cmdline())[:200]}")
    return names


@contextmanager
def _small_disk(folder: Path, wanted: bool) -> Iterator[None]:
    """Put a file system of 200 KB at a folder, which takes root."""
    if not wanted or os.geteuid():
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
