"""Every recipe in scripts/recipes is a run that can start, and cpu.yml makes it small enough for a
CPU."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config import checks, grid, options
from bench.planner.dry_runs import DryRuns
from bench.runner import launch
from bench.simulator import fit
from methods import METHODS
from odysseus.config.advice import advice
from odysseus.config.run import RunConfig
from odysseus.memory.tiling import tile_count
from tests.support.marks import slow
from tests.support.paths import ROOT

RECIPES = ROOT / "scripts/recipes"
OVERLAY = RECIPES / "cpu.yml"
CELLS = sorted(RECIPES.glob("*gpu.yml"))
SWEEP = RECIPES / "ablation.yml"
QUICK = ("llama3-70b-8gpu", "llama3-70b-64gpu")
"""Recipes whose need is counted in the default suite: near the limit of their GPUs, their hosts."""


def parsed(*files: Path) -> RunConfig:
    parser = options.parser("run", "")
    options.add_run_options(parser)
    arguments = [f"--config={file}" for file in files]
    return grid.run_config(options.parse(parser, arguments))


def expanded(*files: Path) -> list[RunConfig]:
    parser = options.parser("sweep", "")
    options.add_grid_options(parser)
    return grid.expand(options.parse(parser, [f"--config={file}" for file in files]))


def test_the_names_of_the_recipes() -> None:
    sizes = {"llama3-8b": (1, 8, 16, 32), "llama3-70b": (8, 16, 32, 64)}
    sizes["qwen3-32b"] = (1, 8, 16, 32, 64)
    named = {f"{model}-{gpus}gpu" for model, counts in sizes.items() for gpus in counts}
    assert {file.stem for file in RECIPES.iterdir()} == named | {"cpu", "ablation"}


@pytest.mark.parametrize("file", [*CELLS, SWEEP, OVERLAY], ids=lambda file: file.stem)
def test_one_comment_line_says_what_it_is_for(file: Path) -> None:
    first, *others = file.read_text().splitlines()
    assert first.startswith("# ")
    assert len(first) <= 120
    assert [line for line in others if "#" in line] == []
    if file != OVERLAY:
        gpus = parsed(file).world_size if file in CELLS else 8
        nodes = f"{gpus // 8} nodes of 8" if gpus > 8 else str(gpus)
        assert re.search(rf"(# |on ){nodes} x H100-80GB", first)
        assert first.endswith("; not run here.")


ON_GPUS = [*CELLS, SWEEP, *(ROOT / "scripts/sweeps").glob("*_gpu.yml")]


@pytest.mark.parametrize("file", ON_GPUS, ids=lambda file: file.stem)
def test_without_a_gpu_it_is_refused(file: Path) -> None:
    """It would compute for days on a CPU."""
    for run in [parsed(file)] if file in CELLS else expanded(file):
        model = replace(run.model, type="torch", attn_implementation="auto")
        with pytest.raises(ValueError, match="device is cuda, but there is no GPU"):
            checks.check(replace(run, model=model))


@pytest.mark.parametrize("file", CELLS, ids=lambda file: file.stem)
def test_a_recipe_could_start(file: Path) -> None:
    run = parsed(file)
    run.check()
    METHODS[run.method].check(run)
    assert file.stem == f"{run.model.name_or_path}-{run.world_size}gpu"
    assert run.seq_len % (256 * run.sequence_size) == 0
    assert advice(run) == []


def need_of(run: RunConfig) -> fit.Need:
    """Return what the planner predicts that a recipe needs on its nodes."""
    asked = replace(run, dry_run=True, hardware="h100-80g")
    checks.check(asked)
    return DryRuns().need(asked)


@pytest.mark.parametrize(
    "file",
    [file if file.stem in QUICK else slow(file) for file in CELLS],
    ids=lambda file: file.stem,
)
def test_a_recipe_fits_its_own_hardware(file: Path) -> None:
    need = need_of(parsed(file))
    assert need.limit == "", need


@pytest.mark.parametrize(
    ("stem", "change", "limit"),
    [
        ("llama3-70b-8gpu", {"parameter_offload": "none"}, "GPU"),
        slow("llama3-70b-64gpu", {"seq_len": 9682944 + 16384}, "host"),
    ],
)
def test_what_a_comment_says_of_the_limit(stem: str, change: dict[str, Any], limit: str) -> None:
    run = parsed(RECIPES / f"{stem}.yml")
    assert need_of(replace(run, **change)).limit == limit


@pytest.mark.slow
def test_every_cell_of_the_ablation_fits() -> None:
    assert [need for run in expanded(SWEEP) if (need := need_of(run)).limit] == []


@pytest.mark.parametrize("file", CELLS, ids=lambda file: file.stem)
def test_with_the_overlay_it_is_a_small_cell_with_the_same_toggles(file: Path) -> None:
    whole, small = parsed(file), parsed(file, OVERLAY)
    checks.check(small)
    assert advice(small) == []
    assert small.device == "cpu"
    assert small.architecture.num_hidden_layers == small.world_size == 2
    toggles = (
        "activation_checkpointing",
        "activation_checkpoint_cpu_offload",
        "tiled_mlp_compute",
        "tiled_loss_compute",
        "seq_parallel_communication_data_type",
        "optimizer",
        "parameter_offload",
        "data",
    )
    assert [t for t in toggles if getattr(small, t) != getattr(whole, t)] == []


def test_the_overlay_has_several_tiles() -> None:
    run = parsed(CELLS[0], OVERLAY)
    assert tile_count(1, run.local_tokens, run.architecture.hidden_size) == 8
    assert 4 * run.local_tokens * run.architecture.vocab_size == 4 * run.tiled_loss_bytes


def test_the_ablation_is_every_combination_of_four_toggles() -> None:
    cells = expanded(SWEEP)
    for run in cells:
        run.check()
        METHODS[run.method].check(run)
        assert advice(run) == []
    combinations = {
        (
            run.activation_checkpoint_cpu_offload,
            run.tiled_mlp_compute,
            run.tiled_loss_compute,
            run.optimizer.offload,
        )
        for run in cells
    }
    assert len(cells) == len(combinations) == 16
    small = expanded(SWEEP, OVERLAY)
    assert len(small) == 16
    for run in small:
        checks.check(run)


def test_a_recipe_with_everything_on_runs() -> None:
    row = launch.run_cell(parsed(RECIPES / "llama3-8b-1gpu.yml", OVERLAY))
    assert (row["status"], row["error"]) == ("ok", "")
    assert row["loss_last"] < row["loss_first"]
    assert row["comm_bytes_total"] == row["theory_comm_bytes_total"]
