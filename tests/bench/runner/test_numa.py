"""A rank on the CPUs beside its GPU: which these are, and when nothing changes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch

from bench.runner import numa, worker
from odysseus.config.run import OptimizerOptions, RunConfig

GPU = torch.device("cuda", 1)
NAME = "0001:3b:0a.0"


@pytest.fixture
def cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """The CPUs of this process, which it has again after the test."""
    before = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "cpu_count", lambda: len(before))
    place = SimpleNamespace(pci_domain_id=1, pci_bus_id=0x3B, pci_device_id=0x0A)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {GPU: place}.__getitem__)
    yield before
    os.sched_setaffinity(0, before)


def system(folder: Path, node: str, listed: dict[str, str]) -> Path:
    """Write what the kernel says of a GPU's node, and of each node's CPUs."""
    device = folder / "bus/pci/devices" / NAME
    device.mkdir(parents=True)
    (device / "numa_node").write_text(f"{node}\n")
    for name, text in listed.items():
        of_node = folder / "devices/system/node" / f"node{name}"
        of_node.mkdir(parents=True)
        (of_node / "cpulist").write_text(f"{text}\n")
    return folder


def test_a_rank_and_its_threads_run_beside_the_gpu(tmp_path: Path, cpus: set[int]) -> None:
    last = max(cpus)
    described = system(tmp_path, "1", {"0": "0-0", "1": f"{last},{last + 100}-{last + 115}"})
    assert numa.bind(GPU, described) == {last}
    assert os.sched_getaffinity(0) == {last}
    of_thread: list[set[int]] = []
    thread = threading.Thread(target=lambda: of_thread.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    assert of_thread == [{last}]


def test_the_cpus_that_a_launcher_has_chosen_stay(
    tmp_path: Path, cpus: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: len(cpus) + 1)
    assert numa.bind(GPU, system(tmp_path, "0", {"0": str(max(cpus))})) == set()
    assert os.sched_getaffinity(0) == cpus


@pytest.mark.parametrize(("option", "bound"), [("node", [GPU]), ("none", [])])
def test_a_rank_is_bound_before_its_group_starts(
    option: Literal["node", "none"], bound: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads, of which AdamW on the host has as many as CPUs, come afterwards."""
    seen: list[torch.device] = []
    threads: list[int] = []

    class StartedError(Exception):
        pass

    def bind(device: torch.device) -> set[int]:
        seen.append(device)
        return {0}

    def start(device: torch.device, timeout_s: float) -> None:
        assert timeout_s > 5
        raise StartedError

    monkeypatch.setattr(numa, "bind", bind)
    monkeypatch.setattr(worker, "pick_device", lambda name: GPU)
    monkeypatch.setattr(worker, "start_process_group", start)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*range(64)})
    on_host = OptimizerOptions(offload="cpu")
    run = RunConfig(numa_binding=option, optimizer=on_host, world_size=4, timeout_s=5)
    with pytest.raises(StartedError), worker.process_group(run):
        pass
    assert seen == bound
    assert threads == [1 if bound else 16]


@pytest.mark.parametrize(
    ("node", "listed"),
    [("-1", {"0": "0-63"}), ("1", {"0": "0-63"}), ("0", {"0": ""}), ("0", {"0": "9000-9063"})],
)
def test_nothing_changes_where_the_node_is_not_known(
    tmp_path: Path, cpus: set[int], node: str, listed: dict[str, str]
) -> None:
    assert numa.bind(GPU, system(tmp_path, node, listed)) == set()
    assert numa.bind(GPU, tmp_path / "none") == set()
    assert os.sched_getaffinity(0) == cpus
