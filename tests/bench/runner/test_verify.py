"""verify: the split training agrees with the plain one, and a wrong gradient is detected."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch

from bench.__main__ import main
from bench.runner import launch, verify
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.parallel import sharding
from odysseus.training.trainer import Trainer
from tests.support.marks import slow
from tests.support.small_runs import VERIFIED

TRICKS = (
    "--activation_checkpoint_cpu_offload true --tiled_mlp_compute true "
    "--tiled_loss_compute true --tiled_loss_bytes 10240 "
    "--reduce_bucket_size 1000 --parameter_offload cpu"
)
COLUMNS = ["step"]
COLUMNS += [f"{name}{of}" for of in ("_reference", "") for name in ("loss", "grad_norm")]
COLUMNS += [*(f"{name}_difference" for name in ("loss", "grad_norm")), "tolerance"]


@pytest.fixture(scope="module", autouse=True)
def trained_once() -> Iterator[None]:
    """Train the reference once, which all runs here share."""
    with patch.object(launch, "run_workers", cache(launch.run_workers)):
        yield


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


SPLIT = [("ulysses", 2, 2)]
REST = [
    ("tp_sp", 1, 2),
    ("tp", 2, 2),
    ("odysseus", 1, 4),
    ("tp", 1, 4),
    ("tp_sp", 1, 4),
    ("tp_sp", 2, 2),
    ("ulysses", 1, 4),
]
REST += [("ulysses", 4, 1), ("odysseus", 2, 2)]


@pytest.mark.parametrize(("method", "ring", "size"), [*SPLIT, *(slow(*case) for case in REST)])
def test_all_tricks_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, ring: int, size: int
) -> None:
    """Split the sequence over all 4 ranks, by heads or a ring, or over 2 in 2 replicas."""
    out = tmp_path / "deep" / "verify.csv"
    flags = f"{VERIFIED} {TRICKS} --method {method} --sequence_parallel_size {size} --out {out}"
    flags += f" --ring_parallel_size {ring}"
    assert main(["verify", *flags.split()]) == 0
    of, said = capsys.readouterr().out.splitlines()
    n, crossed = ring * size, f" x ring {ring}" if ring > 1 else ""
    assert of == (
        f"{method}, DP {4 // n}{crossed} x SP {size} x GAS {n}, against DP 4 x SP 1 x GAS 1: "
        "tiny(hidden_size=32, intermediate_size=48, num_hidden_layers=2), 72 tokens, fp64"
    )
    match = re.fullmatch(
        r"agree over 3 steps; largest relative difference: loss (\S+), grad_norm (\S+); "
        r"tolerance 1e-10 \(fp64 sums in another order differ by 1e-16, which training enlarges\)",
        said,
    )
    assert match is not None, said
    steps = pd.read_csv(out)
    assert list(steps.columns) == COLUMNS
    assert list(steps["step"]) == [0, 1, 2]
    for name, largest in zip(verify.QUANTITIES, match.groups(), strict=True):
        difference = (steps[name] - steps[f"{name}_reference"]).abs() / steps[f"{name}_reference"]
        pd.testing.assert_series_equal(
            steps[f"{name}_difference"], difference, check_names=False, rtol=1e-6
        )
        assert f"{difference.max():.1e}"[:3] == f"{float(largest):.1e}"[:3]
        assert difference.max() < 1e-11  # far below what is tolerated
    assert steps["loss"].is_monotonic_decreasing
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in out.with_suffix(".svg").read_text()


def _with_one_gradient_scaled(run: RunConfig) -> dict[str, Any]:
    """Train with the gradient of one weight multiplied by 1.5."""
    forward_backward = Trainer.forward_backward

    def scaled(trainer: Trainer, batches: Any) -> torch.Tensor:
        loss = forward_backward(trainer, batches)
        gradient = trainer.model.get_parameter("model.layers.0.mlp.down_proj.weight").grad
        assert gradient is not None
        sharding.local_shard(gradient)[0].mul_(1.5)
        return loss

    with patch.object(Trainer, "forward_backward", scaled):
        return verify.history(run)


def test_one_wrong_gradient_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = []

    def wrong(run: RunConfig, reference: str) -> verify.Verdict:
        verdicts.append(real(run, _with_one_gradient_scaled, reference))
        return verdicts[-1]

    real = verify.verify
    monkeypatch.setattr(verify, "verify", wrong)
    out = tmp_path / "verify.csv"
    assert main(["verify", *VERIFIED.split(), "--out", str(out)]) == 1
    assert "DIFFER over 3 steps" in capsys.readouterr().out
    (verdict,) = verdicts
    assert not verdict.passed
    assert (verdict.steps["grad_norm_difference"] > 1e-5).all()
    assert verdict.largest["loss"] < 1e-9  # AdamW is blind to a gradient's scale
    assert {path.suffix for path in tmp_path.glob("verify.*")} == {".csv", ".png", ".svg"}


def outcomes(*given: Any) -> Any:
    """Replace `run_workers` by a function that starts nothing and returns given outcomes."""
    left = list(given)
    return lambda run, measure: left.pop(0)


FINE = {"status": "ok", "error": "", "loss": [2.0, 1.0], "grad_norm": [4.0, 2.0]}


@pytest.mark.parametrize("name", verify.QUANTITIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_fail(monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> None:
    run = RunConfig(steps=2)
    broken = FINE | {name: [*FINE[name][:1], value]}
    for pair in ((FINE, broken), (broken, FINE), (broken, broken)):
        monkeypatch.setattr(launch, "run_workers", outcomes(*pair))
        assert not verify.verify(run).passed


def test_a_verdict_of_no_number_is_drawn_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "verify.csv"
    for loss, status, word in (([2.0, 1.0], 0, "agree"), ([float("nan")] * 2, 1, "DIFFER")):
        monkeypatch.setattr(launch, "run_workers", outcomes(FINE, FINE | {"loss": loss}))
        assert main(["verify", "--steps", "2", "--out", str(out)]) == status
        assert capsys.readouterr().out.splitlines()[1].startswith(f"{word} over 2 steps; ")
        assert out.with_suffix(".png").exists()


@pytest.mark.parametrize("dtype", verify.TOLERANCES)
@pytest.mark.parametrize("name", verify.QUANTITIES)
def test_the_tolerance_is_relative_and_of_the_dtype(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, name: str
) -> None:
    tolerance, why = verify.TOLERANCES[dtype]
    for factor, passed in ((0.9, True), (-0.9, True), (1.1, False), (-1.1, False)):
        off = FINE | {name: [FINE[name][0], FINE[name][1] * (1 + factor * tolerance)]}
        monkeypatch.setattr(launch, "run_workers", outcomes(FINE, off))
        verdict = verify.verify(RunConfig(steps=2, dtype=dtype))
        assert verdict.passed == passed
        assert (verdict.tolerance, verdict.why) == (tolerance, why)
        assert verdict.largest[name] == pytest.approx(abs(factor) * tolerance, rel=1e-5)


def _fails(run: RunConfig) -> dict[str, Any]:
    raise ValueError("this worker fails")


@pytest.mark.parametrize("which", ["reference", "method odysseus"])
def test_a_failing_worker_is_one_line_and_1(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    which: str,
) -> None:
    failed = {"status": "oom_gpu", "error": "rank 0: OutOfMemoryError: out of memory"}
    given = (failed, FINE) if which == "reference" else (FINE, failed)
    monkeypatch.setattr(launch, "run_workers", outcomes(*given))
    out = tmp_path / "verify.csv"
    assert main(["verify", "--steps", "2", "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"verify: {which}: oom_gpu: rank 0: OutOfMemoryError: out of memory\n"
    assert not out.exists()


def test_a_worker_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig(model=ModelOptions(num_hidden_layers=1), seq_len=32, steps=1)
    with pytest.raises(RuntimeError) as error:
        verify.verify(run, _fails)
    assert str(error.value) == ("method odysseus: error: rank 0: ValueError: this worker fails")


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ("--method pp", {}, "'tp', 'tp_sp', 'ulysses', 'odysseus'"),
        ("--steps 0", {}, "steps is 0; it must be at least 1"),
        ("--world_size 4 --seq_len 1023", {}, "nearest valid: 1020 or 1024"),
        ("--out /proc/version/verify.csv", {}, "in a folder you may write to"),
        ("--world_size 2", {"RANK": "0", "WORLD_SIZE": "2"}, "without torchrun or srun"),
    ],
)
def test_bad_input_starts_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    environment: dict[str, str],
    expected: str,
) -> None:
    monkeypatch.setattr(launch, "run_workers", outcomes())
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert main(["verify", *flags.split()]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith("python -m bench verify: ")
    assert expected in printed.err


def test_a_dry_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--dry_run", "true"]) == 2
    assert "dry_run = true has no losses" in capsys.readouterr().err
