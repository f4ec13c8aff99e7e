"""Fit the constants of a matmul's tiles to open measurements of single matmuls, and judge them.

python -m scripts.validation.matmuls GPU=FILE[,FILE...] ...    10 seconds

A GPU is a profile's name; a file is SimuMax's configs/system/*.json (MooreThreads/SimuMax) or
Vidur's data/profiling/compute/*/*/mlp.csv (microsoft/vidur). Neither is part of this repository.
Half of the shapes are fitted, the other half judges. A shape counts by the time that it takes, as
it does in a step.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import log
from pathlib import Path

import pandas as pd

from bench.hardware.profiles import PROFILES
from bench.simulator.tiles import FITTED, Tiling, matmul_s

LEAST_FLOPS = 2e10
"""Smaller matmuls take less than 0.1 ms, much of it to launch them."""
MOST_SHAPES = 800
"""Shapes of a GPU that are fitted; the constants do not change with more."""


@dataclass(frozen=True)
class Measured:
    """One measured matmul in bf16 or fp16."""

    rows: int
    columns: int
    inner: int
    seconds: float

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.columns * self.inner


def simumax(path: Path) -> Iterator[Measured]:
    """Yield the matmuls of a file of SimuMax, whose efficiencies are shares of its peak."""
    known = json.loads(path.read_text())["accelerator"]["op"]["matmul"]
    for text, efficiency in known["accurate_efficient_factor"].items():
        sizes = dict(part.split("=") for part in text.split(", "))
        rows, columns, inner = int(sizes["m"]), int(sizes["n"]), int(sizes["k"])
        seconds = 2 * rows * columns * inner / (known["tflops"] * 1e12 * efficiency)
        yield Measured(rows, columns, inner, seconds)


def vidur(path: Path) -> Iterator[Measured]:
    """Yield the projections of a file of Vidur, whose times are in milliseconds."""
    for row in pd.read_csv(path).to_dict("records"):
        ranks, width, mlp = (
            int(row[name]) for name in ("num_tensor_parallel_workers", "n_embd", "n_expanded_embd")
        )
        heads, kv_heads = int(row["n_head"]) // ranks, max(1, int(row["n_kv_head"]) // ranks)
        head = width // int(row["n_head"])
        gated = 2 if row["use_gated_mlp"] else 1
        shapes = {
            "attn_pre_proj": ((heads + 2 * kv_heads) * head, width),
            "attn_post_proj": (width, heads * head),
            "mlp_up_proj": (gated * mlp // ranks, width),
            "mlp_down_proj": (width, mlp // ranks),
        }
        for name, (columns, inner) in shapes.items():
            seconds = row[f"time_stats.{name}.median"] / 1e3
            yield Measured(int(row["num_tokens"]), columns, inner, seconds)


def halves(measured: Sequence[Measured]) -> tuple[list[Measured], list[Measured]]:
    """Divide measurements in two by their weight's shape, so that no judged weight was fitted."""
    weights = sorted({(one.columns, one.inner) for one in measured})
    random.Random(0).shuffle(weights)
    fitted = set(weights[::2])
    known = [one for one in measured if (one.columns, one.inner) in fitted]
    return known, [one for one in measured if (one.columns, one.inner) not in fitted]


def rate(measured: Sequence[Measured], multiprocessors: int, tiling: Tiling) -> float:
    """Return the FLOP/s with the least mean error: the median of each one's own, by its time."""
    own = sorted(
        (matmul_s(one.rows, one.columns, one.inner, 1.0, multiprocessors, tiling) / one.seconds,
         one.seconds)
        for one in measured
    )  # fmt: skip
    half = sum(seconds for _, seconds in own) / 2
    for flops_per_s, seconds in own:
        half -= seconds
        if half <= 0:
            return flops_per_s
    raise ValueError("no matmuls were measured")


def errors(
    measured: Sequence[Measured], flops_per_s: float, multiprocessors: int, tiling: Tiling
) -> list[float]:
    """Return the logarithm of predicted over measured seconds, for each."""
    return [
        log(matmul_s(one.rows, one.columns, one.inner, flops_per_s, multiprocessors, tiling)
            / one.seconds)
        for one in measured
    ]  # fmt: skip


def weighted(values: Sequence[float], measured: Sequence[Measured]) -> float:
    """Return the mean of values, each by the time of its matmul."""
    weights = [one.seconds for one in measured]
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def fit(of_gpus: dict[str, list[Measured]]) -> Tiling:
    """Return the constants with the least mean error over all GPUs, each GPU with its own rate."""

    def loss(tiling: Tiling) -> float:
        total = 0.0
        for gpu, measured in of_gpus.items():
            cores = _multiprocessors(gpu)
            residuals = errors(measured, rate(measured, cores, tiling), cores, tiling)
            total += weighted([abs(error) for error in residuals], measured)
        return total

    grid = product((0.7, 0.75, 0.8, 0.85, 0.9), (60, 90, 120, 150), (0.1, 0.2, 0.27, 0.35, 0.5))
    return min((Tiling(*constants) for constants in grid), key=loss)


def _multiprocessors(gpu: str) -> int:
    speeds = PROFILES[gpu].speeds
    assert speeds, "a GPU without speeds has no profile to fit"
    return speeds.multiprocessors


def _read(argument: str) -> tuple[str, list[Measured]]:
    gpu, _, files = argument.partition("=")
    paths = map(Path, files.split(","))
    read = (one for path in paths for one in (simumax if path.suffix == ".json" else vidur)(path))
    return gpu, [one for one in read if one.flops >= LEAST_FLOPS]


def main(arguments: list[str]) -> None:
    known = dict(map(_read, arguments))
    split = {gpu: halves(measured) for gpu, measured in known.items()}
    chosen = random.Random(0)
    fitted = {
        gpu: chosen.sample(known, min(MOST_SHAPES, len(known))) for gpu, (known, _) in split.items()
    }
    print(f"fitted: {fit(fitted)}; in use: {FITTED}")
    for gpu, (known, judged) in split.items():
        cores = _multiprocessors(gpu)
        flops_per_s = rate(known, cores, FITTED)
        residuals = errors(judged, flops_per_s, cores, FITTED)
        low, middle, high = pd.Series(residuals).quantile([0.1, 0.5, 0.9])
        print(
            f"{gpu}: {flops_per_s / 1e12:.0f} TFLOP/s from {len(known)} matmuls; of {len(judged)} "
            f"others the error is {weighted([abs(e) for e in residuals], judged):.1%} on average, "
            f"{weighted(residuals, judged):+.1%} together, {low:+.1%} to {high:+.1%} in the middle "
            f"80 % of shapes (median {middle:+.1%})"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
