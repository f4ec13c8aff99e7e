"""ArcticTraining recipes as --config files: the resulting runs, notes and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.config import arctic, grid, options
from odysseus.config import hf_config
from odysseus.config.run import RunConfig
from tests.support.arctic import LEAST, RECIPE, ZERO, built
from tests.support.hf_configs import SIZES
from tests.support.launched import one_row
from tests.support.paths import ROOT


def parsed(file: Path, *flags: str) -> RunConfig:
    parser = options.parser("run", "")
    options.add_run_options(parser)
    return grid.run_config(options.parse(parser, [*flags, "--config", str(file)]))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run-mine.yml"
    path.write_text(RECIPE)
    return path


def test_a_whole_recipe(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = parsed(file)
    assert (run.method, run.world_size, run.sequence_parallel_size) == ("ulysses", 4, 4)
    assert (run.micro_batch_size, run.gradient_accumulation_steps) == (2, 3)
    assert (run.warmup_steps, run.steps, run.seed) == (2, 10, 7)
    assert (run.seq_len, run.dtype) == (131_072, "bf16")
    assert run.seq_parallel_communication_data_type == "bf16"
    assert run.reduce_bucket_size == 125_000_000
    assert (run.optimizer.type, run.optimizer.learning_rate) == ("adamw", 2e-5)
    assert (run.optimizer.offload, run.parameter_offload) == ("masters", "cpu")
    assert run.activation_checkpointing
    assert run.activation_checkpoint_cpu_offload
    assert run.tiled_mlp_compute
    assert run.tiled_loss_compute is True
    assert (run.model.name_or_path, run.model.type) == ("llama3-70b", "liger")
    assert run.model.attn_implementation == "flash_attention_3"
    assert run.model.overrides == {"num_hidden_layers": 4, "rope_theta": 1e6}
    assert run.data.repeat
    run.check()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"{file} is an ArcticTraining recipe; ignored: epochs, min_iterations, kill_switch_path, "
        f"deepspeed.steps_per_print, {ZERO}.overlap_comm, {ZERO}.stage3_max_live_parameters, "
        f"{ZERO}.offload_optimizer.pin_memory, model.save_name, data.sources, data.pack_samples, "
        "data.cache_dir, logger, wandb, checkpoint; in place of its data data.path or the "
        "built-in text, repeated; the learning rate is constant, weight decay 0.01, gradients are "
        "not clipped\n"
    )


def test_absent_keys_have_arctictrainings_defaults() -> None:
    fields, ignored = arctic.convert(built(LEAST))
    assert ignored == []
    assert fields == {
        "method": "ulysses",
        "world_size": 1,
        "sequence_parallel_size": 1,
        "seq_len": 40_960,
        "dtype": "bf16",
        "seed": 42,
        "reduce_bucket_size": 500_000_000,
        "activation_checkpointing": True,
        "activation_checkpoint_cpu_offload": False,
        "model": {"name_or_path": "qwen3-32b", "attn_implementation": "sdpa"},
        "optimizer": {"learning_rate": 5e-4},
        "data": {"repeat": True},
        "timeout_s": 604_800,
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"tiled_mlp_computes": True},
            "tiled_mlp_computes = True; did you mean tiled_mlp_compute?",
        ),
        ({"data.max_lenght": 5}, "unknown key data.max_lenght = 5; did you mean data.max_length?"),
        ({f"{ZERO}.stag": 3}, f"{ZERO}.stag = 3; did you mean {ZERO}.stage?"),
        ({"stage": 3}, f"unknown key stage = 3; did you mean {ZERO}.stage?"),
        ({"logger.colour": "red"}, "valid in logger: output_dir, level, print_output_ranks"),
        ({"deepspeeed.stage": 3}, "did you mean deepspeed?"),
        ({"model.hf_config_kwargs.mlp_bias": True}, "valid in model.hf_config_kwargs: use_cache"),
        ({"data": "text.txt"}, "data is 'text.txt'; valid: a mapping"),
        ({1: 2}, "unknown key 1 = 2; valid: type, micro_batch_size"),
    ],
)
def test_unknown_keys(given: dict[Any, Any], expected: str) -> None:
    nested = built({str(key): value for key, value in given.items()})
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        arctic.convert(built(LEAST) | nested)
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "model.name_or_path is missing; valid: meta-llama/Llama-3.1-8B"),
        ({"model.name_or_path": "Qwen/Qwen3-32B"}, f"{ZERO}.stage is missing; valid: 3"),
        (LEAST | {"model.name_or_path": "tiny"}, "data.max_length is missing"),
        (
            LEAST | {"model.dtype": "fp32", "deepspeed.bf16.enabled": True},
            "deepspeed.bf16.enabled is True; valid: what model.dtype says, 'fp32'",
        ),
        (
            LEAST
            | {
                "activation_checkpoint_cpu_offload": True,
                "model.disable_activation_checkpoint": True,
            },
            "valid: one of them",
        ),
    ],
)
def test_keys_that_do_not_fit(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        arctic.convert(built(given))
    assert expected in str(refusal.value)


def test_the_command_line_wins(file: Path) -> None:
    run = parsed(file, "--seq_len", "512", "--world_size", "8", "--model.type", "torch")
    assert (run.seq_len, run.world_size, run.sequence_parallel_size) == (512, 8, 4)
    assert (run.model.type, run.model.name_or_path) == ("torch", "llama3-70b")


@pytest.mark.parametrize("between", [" ", "="])
def test_a_models_flag_takes_the_recipes_place(between: str, tmp_path: Path) -> None:
    """Also of a model that is no preset, and of its length, which the recipe leaves out."""
    path = tmp_path / "run-mine.yml"
    path.write_text(json.dumps(built(LEAST | {"model.name_or_path": "Qwen/Qwen3-8B"})))
    folder = tmp_path / "folder"
    folder.mkdir()
    config = json.dumps(SIZES | {"model_type": "llama", "max_position_embeddings": 777})
    (folder / "config.json").write_text(config)
    flags = f"--model.name_or_path{between}{folder}".split()
    run = parsed(path, *flags)
    assert (run.model.name_or_path, run.seq_len) == (str(folder), 777)
    with pytest.raises(ValueError, match=r"model\.name_or_path is 'Qwen/Qwen3-8B'; valid: "):
        parsed(path)


def test_a_launchers_size_is_the_world_size(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arctic, "launched_world_size", lambda: 16)
    assert parsed(file).world_size == 16


def test_config_with_an_equals_sign_and_an_overlay(file: Path) -> None:
    overlay = ROOT / "scripts/recipes/cpu.yml"
    parser = options.parser("sweep", "")
    options.add_grid_options(parser)
    arguments = [f"--config={file}", f"--config={overlay}", "--seed", "[1, 2]"]
    runs = grid.expand(options.parse(parser, arguments))
    assert [run.seed for run in runs] == [1, 2]
    assert {(run.world_size, run.seq_len, run.model.name_or_path) for run in runs} == {
        (2, 1024, "llama3-70b")
    }


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("stage: 3", "stage: 2", "deepspeed.zero_optimization.stage is 2; valid: 3"),
        ("type: sft", "type: dpo", "type is 'dpo'; valid: sft or causal"),
        ("type: sft", "!!python/object/apply:os.system ['false']: sft", "python/object"),
        ("[0, 1]", "[0, 1", "while parsing"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "sweep"])
def test_bad_files_end_in_one_line(
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    old: str,
    new: str,
    expected: str,
) -> None:
    file.write_text(RECIPE.replace(old, new, 1))
    assert main([verb, "--config", str(file), "--out", str(tmp_path / "rows.csv")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_native_files_are_left_alone(tmp_path: Path) -> None:
    native = tmp_path / "native.yml"
    native.write_text("model:\n  name_or_path: tiny\ndata:\n  repeat: true\n")
    arguments = ["--config", str(native), "--config", "/nowhere.yml", "--config"]
    assert arctic.translate(arguments) == (arguments, [])


def test_a_recipe_runs(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    flags = (
        "--world_size 2 --sequence_parallel_size 2 --seq_len 512 --steps 1 --warmup_steps 1 "
        "--model.type torch --model.attn_implementation sdpa --dtype fp32 --model.vocab_size 256 "
        "--model.num_hidden_layers 1 --model.hidden_size 64 --model.intermediate_size 128 "
        "--model.num_attention_heads 4 --model.num_key_value_heads 2 --device cpu"
    )
    command = f"{sys.executable} -m bench run --config {file} --out {out} {flags}".split()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr.count("\n")) == (0, 1)
    row = one_row(out)
    assert row["status"] == "ok"
    assert row["model"].startswith("llama3-70b(")
    assert (row["method"], row["micro_batch_size"], row["world_size"]) == ("ulysses", "2", "2")


def test_a_recipe_of_a_folder(tmp_path: Path) -> None:
    """The folder's config.json gives the length of a sample if the recipe does not."""
    architecture = RunConfig().architecture
    (tmp_path / "config.json").write_text(json.dumps(hf_config.to_config(architecture, 96)))
    fields, _ = arctic.convert(built({**LEAST, "model.name_or_path": str(tmp_path)}))
    assert fields["model"]["name_or_path"] == str(tmp_path)
    assert fields["seq_len"] == 96
