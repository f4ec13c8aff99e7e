"""Check that a run can be started on this machine: sizes, method, text, devices, files."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from bench.simulator import dry_run, target
from methods import METHODS, method_of
from methods.peers import as_method, name_of
from odysseus.config.groups import DryRun, Execution
from odysseus.config.run import RunConfig
from odysseus.io import checkpoint
from odysseus.io.text import check_tokens
from odysseus.model import liger
from odysseus.model.kernels import check_kernels
from odysseus.parallel import chunked_block, ring, ulysses_chunks, zero_overlap
from odysseus.parallel.mesh import pick_device
from odysseus.training import implementation


def check_method(run: RunConfig, what: str) -> None:
    """Raise ValueError if the run's method is a peer.

    Args:
        what: Verb or flag that no peer supports, for the message.
    """
    if name_of(run.method):
        raise ValueError(f"method = {run.method} is not for {what}; valid: {', '.join(METHODS)}")


def check(run: RunConfig) -> None:
    """Raise ValueError unless the cell can be started here; the message says what is valid."""
    run.check()
    if name_of(run.method):
        as_method.check(run, _device_of_dry_run(run))
        run = as_method.matching_run(run)
    implementation.check(run)
    _check_experts(run)
    method_of(run.method).check(run)
    chunked_block.check(run)
    dry_run.check(run)
    if run.dry_run:
        zero_overlap.check(run, target.on_gpu(run))
        return
    check_log(run)
    device = pick_device(run.device)
    if run.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but there is no GPU; valid here: auto, cpu")
    check_kernels(run.model, device, run.compute_dtype)
    liger.check(run, device)
    ring.check(run, device)
    ulysses_chunks.check(run, device)
    zero_overlap.check(run, device.type == "cuda")
    check_compiler(run, device)
    check_tokens(run)
    checkpoint.check(run)


def _check_experts(run: RunConfig) -> None:
    """Raise ValueError if the model has experts, and the method builds none."""
    if run.architecture.num_experts and not method_of(run.method).experts:
        raise ValueError(
            f"model.num_experts = {run.architecture.num_experts}, but method = {run.method} does "
            "not say experts=True; valid: a METHOD that does, whose mlp returns MixtureOfExperts"
        )


def _device_of_dry_run(run: DryRun) -> str:
    """Return the kind of device that a dry run is for; empty for a real run."""
    if not run.dry_run:
        return ""
    return "cuda" if target.on_gpu(run) else "cpu"


def refusal(run: RunConfig) -> str:
    """Return the reason why a cell cannot be started; empty if it can."""
    try:
        check(run)
    except ValueError as error:
        return str(error)
    return ""


def check_log(run: Execution) -> None:
    """Raise ValueError if the package of the run's log is missing, or its folder is a file."""
    if run.log == "none":
        return
    if importlib.util.find_spec(run.log) is None:
        raise ValueError(f"log = {run.log} needs the package {run.log}; valid without it: none")
    if os.path.exists(run.log_dir) and not os.path.isdir(run.log_dir):
        raise ValueError(f"log_dir = {run.log_dir} is no folder; valid: a folder, new or not")


def check_compiler(run: Execution, device: torch.device) -> None:
    """Raise ValueError if the run uses torch.compile and its compiler is missing here."""
    compiler = os.environ.get("CXX", "g++")
    if not run.compile:
        return
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(f"compile = true needs a C++ compiler, no {compiler} here; valid: false")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError("compile = true needs the package triton; valid without it: false")


def check_gpus(run: RunConfig, launched: int | None) -> None:
    """Raise ValueError if there are fewer GPUs than ranks, or the launcher started other ranks.

    Args:
        launched: Number of processes that torchrun or srun started; None without them.
    """
    if launched is not None and launched != run.world_size:
        raise ValueError(
            f"world_size = {run.world_size}, but the launcher started {launched} processes; "
            f"valid: {launched}"
        )
    if run.dry_run and launched is not None:
        raise ValueError("dry_run = true runs in one process; run it without torchrun or srun")
    if run.dry_run:
        return
    gpus = torch.cuda.device_count()
    if launched is None and pick_device(run.device).type == "cuda" and run.world_size > gpus:
        raise ValueError(
            f"world_size = {run.world_size} is more than the {gpus} GPUs of this machine; "
            f"valid: up to {gpus}, or device = cpu"
        )
