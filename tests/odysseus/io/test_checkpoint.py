"""Hugging Face checkpoints: the same model as Transformers', read by every rank for itself."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from bench.__main__ import main
from bench.runner import worker
from methods import METHODS
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.io import checkpoint
from odysseus.io.checkpoint import Checkpoint
from odysseus.io.text import Samples
from odysseus.model.decoder import reference_model
from odysseus.parallel import sharding
from tests.support.checkpoint_ranks import CPU, bytes_read, errors, save_again
from tests.support.hf_configs import CONFIGS
from tests.support.hf_reference import full_precision_norm
from tests.support.marks import slow
from tests.support.ranks import run_ranks

TOLERANCE = {"fp64": 1e-10, "fp32": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind, in fp64, of one file or of many; nothing is zero or one."""
    made = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        made[name] = tmp_path_factory.mktemp(name) / "model"
        many = {"max_shard_size": "100KB"} if name in ("llama", "qwen2") else {}
        model.save_pretrained(made[name], **many)
    assert (made["llama"] / "model.safetensors.index.json").is_file()
    return made


def run_of(folder: Path, **changes: Any) -> RunConfig:
    model = ModelOptions(name_or_path=str(folder))
    return replace(RunConfig(model=model, seq_len=64, dtype="fp64", method="tp"), **changes)


def theirs(folder: Path, run: RunConfig, file: Path) -> None:
    """Write Transformers' gradients of a run's first step by name, its loss and its logits."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=run.compute_dtype)
    (batch,) = Samples(replace(run, world_size=1), 0, 0, CPU).step(0)
    logits = model(batch.input_ids).logits
    loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    loss.backward()
    names = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    save_file(names | {"loss": loss.detach(), "logits": logits.detach()}, file)


@pytest.fixture(autouse=True)
def norms_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' own round fp64 to fp32."""
    for norm in (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(norm, "forward", full_precision_norm)


@pytest.mark.parametrize("world_size", [slow(1), 2, slow(4)])
def test_every_method_computes_what_transformers_does(
    world_size: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Loss, logits and every gradient, fp64 to 1e-10, fp32 to 1e-5; in fp64 also
    Transformers' own models, read and split by this project, over the sequence axis and a ring."""
    runs, expected = [], []
    for name, dtype in itertools.product(CONFIGS, TOLERANCE):
        base = run_of(folders[name], world_size=world_size, dtype=dtype)
        file = tmp_path / f"{name}-{dtype}.safetensors"
        theirs(folders[name], base, file)
        runs += [replace(base, method=method) for method in METHODS]
        expected += [str(file)] * len(METHODS)
        if dtype == "fp64":
            theirs_too = replace(base.model, implementation="transformers")
            split = replace(base, method="ulysses", model=theirs_too)
            runs += [split, replace(split, ring_parallel_size=min(2, world_size))]
            expected += [str(file)] * 2
    for of_rank in run_ranks(errors, world_size, runs, expected):
        for run, found in zip(runs, of_rank, strict=True):
            assert max(found) < TOLERANCE[run.dtype], (run, found)


def test_logits_are_transformers(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        run = run_of(folder)
        model = reference_model(run.architecture).double()
        Checkpoint(folder).load(sharding.local_pieces(model, run.architecture))
        (batch,) = Samples(run, 0, 0, CPU).step(0)
        hidden = model.model.norm(model.model(batch.input_ids, batch.position_ids))
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)(
            batch.input_ids
        ).logits
        torch.testing.assert_close(
            F.linear(hidden, model.lm_head.weight), expected, rtol=1e-10, atol=1e-10, msg=name
        )


@pytest.mark.parametrize("name", ["llama_biased", "qwen2", "qwen3"])
def test_saved_again_the_same_bits(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """-0.0 and NaN too; in files of some size."""
    changed = tmp_path / "changed"
    shutil.copytree(folders[name], changed)
    file = sorted(changed.glob("*.safetensors"))[0]
    tensors = load_file(file)
    first = next(iter(tensors.values())).view(-1)
    first[0], first[1] = -0.0, torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    base = run_of(changed, world_size=4)
    runs = [replace(base, method=method) for method in METHODS]
    runs.append(replace(base, sequence_parallel_size=2, ring_parallel_size=2))
    run_ranks(save_again, 4, runs, str(tmp_path), 10**5)
    before = every_tensor(changed)
    for i in range(len(runs)):
        after = every_tensor(tmp_path / str(i))
        assert after.keys() == before.keys()
        for key, tensor in before.items():
            assert torch.equal(tensor.view(torch.uint8), after[key].view(torch.uint8)), key
        AutoModelForCausalLM.from_pretrained(tmp_path / str(i))


def every_tensor(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def test_a_rank_reads_what_it_keeps(folders: dict[str, Path]) -> None:
    run = run_of(folders["llama"], world_size=4)
    runs = [replace(run, method=method) for method in METHODS]
    for of_rank in run_ranks(bytes_read, 4, runs):
        for read, kept in of_rank:
            assert read == kept > 0


def test_a_run_trains_on_and_saves(folders: dict[str, Path], tmp_path: Path) -> None:
    """Two steps from a checkpoint in fp64; Transformers loads the saved bf16 one and trains on."""
    out = tmp_path / "trained"
    flags = f"--model.name_or_path {folders['qwen3']} --world_size 2 --seq_len 64 --dtype bf16"
    flags += f" --steps 1 --warmup_steps 1 --out {tmp_path / 'rows.csv'} --save {out}"
    assert main(["run", *flags.split()]) == 0
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    before = every_tensor(folders["qwen3"])
    for name, tensor in every_tensor(out).items():
        moved = (tensor.double() - before[name]).abs().max()
        assert 0 < moved < 0.01 + before[name].abs().max() / 128  # two steps of 1e-3, and rounding
    assert main(["run", *flags.split()]) == 2  # it is there


def test_a_preset_is_saved_for_transformers(tmp_path: Path) -> None:
    """Transformers computes the loss that training here continues with, with Llama-3's angles."""
    model = ModelOptions(rope_factor=8.0, rope_original_max_position_embeddings=32)
    run = RunConfig(model=model, seq_len=64, steps=1, warmup_steps=0, method="tp_sp")
    run_ranks(worker.measure_in_group, 1, run, CPU, str(tmp_path / "tiny"))
    (next_one,) = run_ranks(worker.measure_in_group, 1, replace(run, warmup_steps=1), CPU)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32)
    (batch,) = Samples(run, 0, 0, CPU).step(1)
    loss = F.cross_entropy(model(batch.input_ids).logits.flatten(0, 1), batch.labels.flatten())
    assert loss.item() == pytest.approx(next_one["loss_last"], rel=1e-5)


def test_fewer_blocks_than_saved_are_refused_and_saved_ones_keep_their_words(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    run = run_of(folders["llama"])
    few = replace(run, model=replace(run.model, num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"has 'model\.layers\.1"):
        checkpoint.check(few)
    other = replace(run, model=replace(run.model, rms_norm_eps=1e-3))
    run_ranks(save_again, 1, [other], str(tmp_path), 10**9)
    given = json.loads((tmp_path / "0" / "config.json").read_text())
    before = json.loads((folders["llama"] / "config.json").read_text())
    assert given["rms_norm_eps"] == 1e-3
    assert given["eos_token_id"] == before["eos_token_id"]
    found = replace(run.model, name_or_path=str(tmp_path / "0"))
    assert replace(run, model=found).architecture == other.architecture


def test_a_dry_run_needs_no_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["mistral"] / "config.json", tmp_path)
    flags = f"--model.name_or_path {tmp_path} --world_size 4 --dry_run true --seq_len 64"
    run = ["run", *flags.split(), "--out", str(tmp_path / "rows.csv")]
    assert main(run) == 0
    assert main([*run, "--save", str(tmp_path / "saved")]) == 2  # and has none to save


def damage(folder: Path, how: str) -> None:
    file, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    tensors = load_file(file)
    if how.startswith("index"):
        file.unlink()
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "lying header":
        file.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    elif how == "pickled":
        file.rename(folder / "pytorch_model.bin")
    elif how == "none":
        file.unlink()
    elif how == "no tensors":
        save_file({}, file)
    elif how == "missing":
        del tensors["model.norm.weight"]
        save_file(tensors, file)
    elif how == "unknown":
        save_file(tensors | {"model.layers.0.extra": torch.ones(1)}, file)
    elif how == "a head that is tied":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    elif how == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif how == "shape":
        save_file(tensors | {"model.norm.weight": torch.ones(3)}, file)
    elif how == "dtype":
        save_file(tensors | {"model.norm.weight": torch.ones(64, dtype=torch.int8)}, file)
    elif how == "index elsewhere":
        index.write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
    elif how == "index without map":
        index.write_text("{}")
    elif how == "index to nothing":
        index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "gone.safetensors")}))
    elif how in ("index to pipe", "index to other.safetensors"):
        save_file({"x": torch.ones(1)}, folder / "other.safetensors")
        os.mkfifo(folder / "pipe")  # nobody writes to it: opening it would never end
        index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, how[9:])}))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("truncated", "cannot be read"),
        ("empty", "cannot be read"),
        ("lying header", "cannot be read"),
        ("pickled", "pytorch_model.bin, which is pickled"),
        ("none", "has no model.safetensors"),
        ("no tensors", "misses 'lm_head.weight' and 20 more"),
        ("missing", "misses 'model.norm.weight'"),
        ("unknown", "has 'model.layers.0.extra'"),
        ("a head that is tied", "has a lm_head.weight that differs from model.embed_tokens.weig"),
        ("adapter", "has adapter_config.json"),
        ("shape", "model.norm.weight is [3], but the model's is [64]"),
        ("dtype", "model.norm.weight is I8; valid: BF16"),
        ("index elsewhere", "names the file '../model.safetensors'"),
        ("index without map", "has no weight_map"),
        ("index to nothing", "gone.safetensors cannot be read"),
        ("index to pipe", "pipe cannot be read: it is no regular file"),
        ("index to other.safetensors", "other.safetensors"),
    ],
)
def test_bad_checkpoints(
    how: str,
    told: str,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = tmp_path / "model", tmp_path / "rows.csv"
    shutil.copytree(folders["mistral"], folder)
    damage(folder, how)
    flags = f"--model.name_or_path {folder} --seq_len 64 --out {out}"
    assert main(["run", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert "valid: " in line
    assert not out.exists()


@settings(max_examples=300, deadline=None)
@given(
    at=st.integers(0, 2000),
    bytes_there=st.binary(min_size=1, max_size=40),
    length=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)
def test_no_header_crashes_the_reader(
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    at: int,
    bytes_there: bytes,
    length: int | None,
) -> None:
    """Damaged anywhere in the header, or its length: refused, or read as the tensors it says."""
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    whole = bytearray((folders["mistral"] / "model.safetensors").read_bytes())
    whole[8 + at : 8 + at + len(bytes_there)] = bytes_there
    if length is not None:
        whole[:8] = length.to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(whole)
    run = run_of(folders["mistral"])
    told = ""
    try:
        Checkpoint(folder).check(run.architecture)
    except ValueError as error:
        told = str(error)
    assert len(told.splitlines()) <= 1
