"""Commands, and faults that happen to them at a random moment."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import psutil

from tests.support.launched import SMALL, wait_for_handlers
from tests.support.paths import RESULTS

SECONDS = 30
"""Time that a command may take after its fault. The longest cell has timeout_s = 10."""
LATEST_S = 8
"""Latest moment of a fault after the start; most commands end then."""

_CELL = f"{SMALL} --seq_len 64 --warmup_steps 0 --timeout_s 10"
COMMANDS = {
    "dry_sweep": f"sweep {_CELL} --dry_run true --seed [{','.join(map(str, range(30)))}]",
    "sweep": f"sweep {_CELL} --steps 2 --world_size 2 --seed [0,1,2,3]",
    "run": f"run {_CELL} --steps 500 --world_size 2",
    "verify": f"verify {_CELL} --steps 3 --world_size 2",
    "theory": f"theory {_CELL} --world_size 2 --measure true",
    "plan": f"plan {_CELL} --objective throughput --world_size 1 --tiled_mlp_compute true",
    "map": f"plan {_CELL} --map_seq_lens [8192] --map_world_sizes [8]",
    "report": f"report --rows {RESULTS / 'limit.csv'}",
}
_START_RANKS = ("sweep", "run", "verify", "theory")
WRITE_ROWS = ("dry_sweep", "sweep", "run")


@dataclass
class Trial:
    """A running command.

    Attributes:
        folder: Its current folder, in which it writes.
        before: Rows of its CSV just before the fault.
        status: The exit status that the fault asks for; None if any but 128 and more will do.
        damages: Whether the fault itself damages the rows.
    """

    random: Random
    command: str
    folder: Path
    process: subprocess.Popen[str]
    before: list[str] | None = None
    status: int | None = None
    damages: bool = False

    @property
    def out(self) -> Path:
        return self.folder / "rows.csv"

    def wait(self, latest_s: float = LATEST_S) -> None:
        """Wait until a random moment, or until the command has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(self.random.uniform(0, latest_s))
        self.before = self.lines()

    def wait_for_row(self) -> None:
        """Wait for the first row, and a random moment more."""
        end = time.monotonic() + SECONDS
        while self.process.poll() is None and not self.out.exists() and time.monotonic() < end:
            time.sleep(0.01)
        self.wait(1)

    def lines(self) -> list[str]:
        return self.out.read_text().splitlines() if self.out.is_file() else []

    def server(self) -> psutil.Process | None:
        """Return the process that forks the ranks; None if there is none."""
        with suppress(psutil.Error):
            found = psutil.Process(self.process.pid).children()
            return next((p for p in found if os.getpgid(p.pid) == p.pid), None)
        return None


Fault = Callable[[Trial], None]


def interrupted(trial: Trial, number: signal.Signals) -> None:
    """SIGINT or SIGTERM, from the first moment at which they are handled."""
    with suppress(AssertionError):
        wait_for_handlers(trial.process)
    trial.wait()
    if _stopped(trial.process):
        trial.process.send_signal(number)
        trial.status = 128 + number
        trial.process.send_signal(signal.SIGCONT)


def _stopped(process: subprocess.Popen[str]) -> bool:
    """Stop a process. Return False if it has ended or is about to: the kernel still knows a process
    for some milliseconds after its exit, and no signal reaches it any more."""
    process.send_signal(signal.SIGSTOP)
    while process.poll() is None:
        with suppress(psutil.Error):
            if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:
                return True
        time.sleep(0.001)
    return False


def killed(trial: Trial) -> None:
    trial.wait()
    trial.process.kill()


def rank_killed(trial: Trial) -> None:
    trial.wait()
    with suppress(psutil.Error):
        if (server := trial.server()) and (ranks := server.children()):
            trial.random.choice(ranks).kill()


def server_sent(trial: Trial, number: signal.Signals) -> None:
    """SIGKILL or SIGSTOP to the process that forks the ranks."""
    trial.wait()
    with suppress(psutil.Error):
        if server := trial.server():
            server.send_signal(number)


def reader_left(trial: Trial) -> None:
    trial.wait()
    assert trial.process.stdout is not None
    trial.process.stdout.close()


def rows_damaged(trial: Trial) -> None:
    """The file of rows is emptied, cut, overwritten, removed or replaced by a folder."""
    trial.wait_for_row()
    trial.damages = True
    if not trial.out.is_file():
        return
    match trial.random.choice(["empty", "cut", "binary", "foreign", "removed", "folder"]):
        case "empty":
            trial.out.write_bytes(b"")
        case "cut":
            content = trial.out.read_bytes()
            trial.out.write_bytes(content[: trial.random.randrange(len(content))])
        case "binary":
            trial.out.write_bytes(trial.random.randbytes(1000))
        case "foreign":
            trial.out.write_text("name,colour\nsea,blue\n")
        case "removed":
            trial.out.unlink()
        case _:
            trial.out.unlink()
            trial.out.mkdir()


def folder_removed(trial: Trial) -> None:
    trial.wait()
    trial.damages = True
    subprocess.run(["rm", "-rf", trial.folder], check=True)


def disk_filled(trial: Trial) -> None:
    """Only for a trial in a file system of its own."""
    trial.wait()
    with suppress(OSError), open(trial.folder / "filling", "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


def nothing(trial: Trial) -> None:
    """The fault is there from the start."""


FAULTS: dict[str, tuple[Fault, tuple[str, ...]]] = {
    "SIGINT": (partial(interrupted, number=signal.SIGINT), tuple(COMMANDS)),
    "SIGTERM": (partial(interrupted, number=signal.SIGTERM), tuple(COMMANDS)),
    "SIGKILL": (killed, tuple(COMMANDS)),
    "rank killed": (rank_killed, _START_RANKS),
    "server killed": (partial(server_sent, number=signal.SIGKILL), _START_RANKS),
    "server stopped": (partial(server_sent, number=signal.SIGSTOP), _START_RANKS),
    "reader left": (reader_left, tuple(COMMANDS)),
    "rows damaged": (rows_damaged, WRITE_ROWS),
    "folder removed": (folder_removed, tuple(COMMANDS)),
    "disk filled": (disk_filled, (*WRITE_ROWS, "verify", "plan")),
    "few descriptors": (nothing, tuple(COMMANDS)),
    "slow names": (nothing, _START_RANKS),
    "no shared memory": (nothing, (*_START_RANKS, "map", "report")),
}
"""Faults, and the commands to which they can happen."""
