"""Liger is used, and imported, only where it is asked for; refused where it cannot run."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from bench.config import checks
from methods import METHODS
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.io.text import Samples
from odysseus.model import liger
from odysseus.model.kernels import Kernels, choose_kernels
from odysseus.model.loss import choose_loss, whole_logits
from odysseus.parallel.mesh import make_mesh
from odysseus.training.trainer import Trainer
from tests.support.liger import CPU, RUN
from tests.support.ranks import run_ranks


def imported_by_a_step() -> bool:
    """Whether the command line and a step without Liger import it."""
    checks.check(replace(RUN, model=ModelOptions(), world_size=1, device="cpu"))
    run = replace(RUN, model=replace(RUN.model, type="torch"), world_size=1)
    mesh = make_mesh(CPU, run)
    Trainer(run, METHODS[run.method], mesh).forward_backward(Samples(run, 0, 0, CPU).step(0))
    return "liger_kernel" in sys.modules


def test_nothing_else_imports_liger() -> None:
    assert run_ranks(imported_by_a_step, 1, fresh=True) == [False]


def test_model_type_liger_means_ligers_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    checks.check(replace(RUN, device="cpu"))
    chosen = choose_kernels(RUN.model, CPU, torch.float32)
    own = choose_kernels(ModelOptions(), CPU, torch.float32)
    assert chosen == Kernels(
        own.attend,
        liger.rms_norm,
        liger.swiglu,
        liger.rotary,
        own.blocks,
        chosen.attention_with_lse,
    )
    tiled = choose_loss(RUN, RUN.architecture.vocab_size)
    assert isinstance(tiled, partial)
    assert tiled.func is liger.fused_linear_cross_entropy
    assert choose_loss(replace(RUN, tiled_loss_compute=False), 512) is whole_logits


ENGINE = replace(RUN, model=ModelOptions(), tiled_loss_engine="liger", device="cpu")
MODEL = replace(RUN, device="cpu")


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (MODEL, "model.type = liger needs CUDA; valid on cpu: torch"),
        (
            ENGINE,
            "tiled_loss_engine = liger needs CUDA; valid on cpu: auto, fused, checkpoint, torch",
        ),
    ],
)
def test_refused_on_a_cpu(run: RunConfig, told: str) -> None:
    with pytest.raises(ValueError, match="needs") as refused:
        checks.check(run)
    assert str(refused.value) == told


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (MODEL, "model.type = liger needs the package liger-kernel; valid without it: torch"),
        (
            ENGINE,
            "tiled_loss_engine = liger needs the package liger-kernel; "
            "valid without it: auto, fused, checkpoint, torch",
        ),
    ],
)
def test_refused_without_the_package(
    monkeypatch: pytest.MonkeyPatch, run: RunConfig, told: str
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs") as refused:
        checks.check(run)
    assert str(refused.value) == told


@pytest.mark.parametrize("run", [MODEL, ENGINE])
def test_refused_in_fp64(monkeypatch: pytest.MonkeyPatch, run: RunConfig) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match=r"^dtype = fp64 is .*; valid: fp32, bf16$"):
        checks.check(replace(run, dtype="fp64"))
