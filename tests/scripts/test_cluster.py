"""Several hosts: two network namespaces of this machine, and the scripts for real ones."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bench import rows
from methods import METHODS
from tests.support.paths import ROOT

EMULATE = str(ROOT / "scripts/cluster/emulate_cluster.sh")
RUN = "run --world_size 4 --seq_len 64 --steps 1 --warmup_steps 1 --device cpu"


def namespaces(host: subprocess.Popen[str]) -> list[str]:
    """The namespaces of one run of the script; another run's are not its affair."""
    found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return re.findall(rf"^odysseus-{host.pid}\b\S*", found.stdout, re.MULTILINE)


def has_namespaces() -> bool:
    """Whether this machine permits network namespaces."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc", "taskset"))):
        return False
    probe = ["ip", "netns", "add", "odysseus-probe"]
    made = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "delete", "odysseus-probe"], check=True)
    return made


needs_namespaces = pytest.mark.skipif(not has_namespaces(), reason="needs root and iproute2")


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [EMULATE, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ignores(pid: int, number: signal.Signals) -> bool:
    """Whether a process ignores a signal, as the script does once it cleans up (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


@needs_namespaces
@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    ["--method ulysses --ring_parallel_size 2", *(f"--method {name}" for name in METHODS)],
)
def test_two_hosts_of_two_ranks(tmp_path: Path, flags: str) -> None:
    """Use a real rendezvous and real sockets: the row is complete, and its bytes equal theory's."""
    out = tmp_path / "rows.csv"
    run = [*RUN.split(), *flags.split(), "--out", str(out)]
    host = start("--hosts", "2", "--ranks", "2", "--rate", "1gbit", "--", *run)
    said, _ = host.communicate(timeout=120)
    assert host.returncode == 0, said
    assert "4 ranks on 2 nodes of 2" in said
    (row,) = rows.read(out).to_dict("records")
    assert row["status"] == "ok"
    assert int(row["comm_bytes_total"]) == int(row["theory_comm_bytes_total"]) > 0
    assert namespaces(host) == []


@needs_namespaces
def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    """Not even a second interrupt during the clean-up leaves a process."""
    run = [*RUN.split(), "--steps", "9999", "--out", str(tmp_path / "rows.csv")]
    host = start("--", *run)
    deadline = time.monotonic() + 60
    while len(namespaces(host)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    os.killpg(host.pid, signal.SIGINT)
    while not ignores(host.pid, signal.SIGTERM) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(host.pid, signal.SIGTERM)
    host.communicate(timeout=60)
    assert host.returncode == 130
    assert namespaces(host) == []


@needs_namespaces
def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    run = [*RUN.split(), "--steps", "9999", "--out", str(tmp_path / "rows.csv")]
    with start("--", *run) as killed:
        deadline = time.monotonic() + 60
        while len(namespaces(killed)) < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(killed.pid, signal.SIGKILL)
    assert len(namespaces(killed)) == 3
    following = start("--", "dry_run")
    following.communicate(timeout=120)
    assert namespaces(killed) == namespaces(following) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "fast", "--", "run"], "--rate is 'fast'; valid: none, or like 200mbit"),
        (["--hosts", "0", "--", "run"], "--hosts is '0'; valid: 1 to 99"),
        (["--ranks", "2; ls", "--", "run"], "--ranks is '2; ls'"),
        (["--nodes", "2", "--", "run"], "--nodes is no option; valid: --hosts, --ranks, --rate"),
        (["--hosts"], "--hosts has no value"),
        (["--hosts", "2"], "nothing to run; give it after --"),
    ],
)
def test_bad_input(arguments: list[str], said: str) -> None:
    host = start(*arguments)
    printed, _ = host.communicate(timeout=10)
    assert (host.returncode, len(printed.splitlines())) == (2, 1)
    assert said in printed


@pytest.mark.parametrize("script", sorted((ROOT / "scripts/cluster/slurm").glob("*.sbatch")))
def test_batch_scripts_are_bash_and_start_the_bench(script: Path, tmp_path: Path) -> None:
    """Run each script with an srun that prints its arguments."""
    srun = tmp_path / "srun"
    srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    cells = tmp_path / "cells.txt"
    cells.write_text("--method tp\n--method ulysses --data.path $(touch nothing)")
    given = [str(cells)] if "sweep" in script.name else ["--method", "ulysses"]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "2"}
    done = subprocess.run(
        ["bash", str(script), *given], env=path, capture_output=True, text=True, check=True
    )
    printed = done.stdout.splitlines()
    assert printed[:7] == [
        *("--kill-on-bad-exit=1", "python", "-m", "bench", "run", "--method", "ulysses"),
    ]
    assert printed[7:] == (["--data.path", "$(touch", "nothing)"] if "sweep" in script.name else [])


@pytest.mark.parametrize("lines", ["", "--method tp\n\n--method tp\n"])
def test_a_line_without_flags_is_no_cell(lines: str, tmp_path: Path) -> None:
    cells = tmp_path / "cells.txt"
    cells.write_text(lines)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/cluster/slurm/sweep.sbatch"), str(cells)],
        env=os.environ | {"SLURM_ARRAY_TASK_ID": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"sweep.sbatch: {cells} has no flags on line 2\n"


@needs_namespaces
@pytest.mark.slow
def test_hosts_that_do_not_end_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "taskset"
    stub.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    host = start("--hosts", "2", "--ranks", "1", "--", "run")
    time.sleep(3)
    host.send_signal(signal.SIGTERM)
    host.communicate(timeout=30)
    assert host.returncode == 143
    assert namespaces(host) == []


@needs_namespaces
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_hosts_get_their_own_cores_at_any_number_of_openmp_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nproc counts by OMP_NUM_THREADS, which is 1 when each rank has one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert printed_on_hosts(tmp_path, monkeypatch, 'echo "$2"') == [
        *map(str, sorted(os.sched_getaffinity(0))[:2])
    ]


@needs_namespaces
@pytest.mark.parametrize("rate", ["none", "200mbit"])
def test_congestion_control_and_freed_memory_of_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: str
) -> None:
    """Hosts use Reno on a link without a rate limit, keep congestion windows, and keep freed
    memory."""
    tcp = "/proc/sys/net/ipv4/tcp_"
    show = f"echo $(cat {tcp}congestion_control {tcp}slow_start_after_idle) "
    show += "$MALLOC_TRIM_THRESHOLD_ $MALLOC_MMAP_THRESHOLD_"
    known = Path(f"{tcp}available_congestion_control").read_text().split()
    control = "bbr" if rate != "none" and "bbr" in known else "reno"
    found = printed_on_hosts(tmp_path, monkeypatch, show, "--rate", rate)
    assert found == [f"{control} 0 {2**32} {2**25}"] * 2


def printed_on_hosts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, *flags: str
) -> list[str]:
    """Return what a shell command prints on each of two hosts, run instead of their ranks."""
    printed, stub = folder / "printed", folder / "taskset"
    stub.write_text(f"#!/bin/sh\n{command} >> {printed}\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    host = start("--hosts", "2", "--ranks", "1", *flags, "--", "run")
    said, _ = host.communicate(timeout=60)
    assert host.returncode == 0, said
    return sorted(printed.read_text().splitlines())
