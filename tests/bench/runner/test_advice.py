"""Advice is given only where it applies; compiling without a compiler is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.config import checks
from bench.hardware import profile_file, profiles
from bench.hardware.speeds import Link
from bench.runner.advice import advice
from odysseus.config.run import ModelOptions, OptimizerOptions, RunConfig
from tests.support.runs import RUN

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
QUIET = RunConfig(seq_len=1024)


@pytest.fixture(autouse=True)
def _no_allocator_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)


def test_no_advice_for_a_good_run() -> None:
    assert advice(QUIET, CPU) == advice(QUIET, CUDA) == []


def test_on_lengths() -> None:
    (line,) = advice(RUN, CPU)
    assert "seq_len = 32 is not a multiple of 256" in line


def test_on_a_bucket_of_a_few_elements() -> None:
    (line,) = advice(RunConfig(seq_len=1024, world_size=2, reduce_bucket_size=7), CPU)
    assert line.startswith(
        "reduce_bucket_size = 7 reduces the gradients of the embedding alone in "
    )
    assert advice(RunConfig(seq_len=1024, world_size=2, reduce_bucket_size=10_000), CPU) == []


def test_on_the_allocator_of_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    off = RunConfig(seq_len=1024, expandable_segments=False)
    assert advice(off, CPU) == []
    (line,) = advice(off, CUDA)
    assert "expandable_segments is false" in line
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    (line,) = advice(QUIET, CUDA)
    assert "'max_split_size_mb:64'" in line
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    assert advice(QUIET, CUDA) == []


def test_on_host_memory_that_is_nearly_full() -> None:
    offload = {"seq_len": 1024, "optimizer": OptimizerOptions(offload="cpu")}
    assert advice(RunConfig(**offload), CPU) == []
    (line,) = advice(RunConfig(**offload, host_memory_limit_bytes=60_000_000), CPU)
    assert "of the 60000000 bytes of host memory" in line


def test_compile_wants_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    checks.check_compiler(RunConfig(compile=True), CPU)
    monkeypatch.setenv("CXX", "no-such-compiler")
    checks.check_compiler(RunConfig(), CPU)
    with pytest.raises(ValueError, match=r"compile = true needs a C\+\+ compiler, no no-such"):
        checks.check_compiler(RunConfig(compile=True), CPU)
    with pytest.raises(ValueError, match="compile = true is not known to be right"):
        RunConfig(compile=True, model=ModelOptions(type="liger")).check()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package triton; valid without it: false"):
        checks.check_compiler(RunConfig(compile=True), CUDA)


def test_on_links_that_were_calibrated_on_fewer_ranks(tmp_path: Path) -> None:
    profile, file = profiles.PROFILES["h100-80g"], tmp_path / "here.yml"
    assert profile.speeds is not None
    links = (Link(ranks=16, nodes=2, points=((1, 1),)),)
    profile_file.write(replace(profile, speeds=replace(profile.speeds, links=links)), file)
    run = replace(QUIET, dry_run=True, dtype="bf16", hardware=str(file), seq_len=8192)
    assert advice(replace(run, world_size=16), CPU) == []
    (line,) = advice(replace(run, world_size=32), CPU)
    assert "calibrated on groups of up to 16 ranks" in line
