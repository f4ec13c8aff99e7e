"""The example for users of Transformers runs as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support.hf_families import CONFIGS
from tests.support.paths import ROOT

WORDS = {"?": 0, "the": 1, "sea": 2, "is": 3, "deep": 4}


def losses(ranks: int, model: Path, text: Path) -> list[float]:
    """Return the losses that the example prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks)]
    command += ["-m", "scripts.train_hf", str(model), str(text), "64", "3"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [float(found) for found in re.findall(r"step \d: loss (\S+)", done.stdout)]


def test_the_example_trains_and_saves(tmp_path: Path) -> None:
    """The losses on one rank and on two agree to bf16, and Transformers loads the saved model."""
    folder, text = tmp_path / "model", tmp_path / "text.txt"
    AutoModelForCausalLM.from_config(CONFIGS["qwen3"], dtype=torch.float32).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    text.write_text("the sea is deep is the sea\n\n" * 40)
    alone, split = losses(1, folder, text), losses(2, folder, text)
    assert len(alone) == 3
    assert max(abs(a - b) for a, b in zip(alone, split, strict=True)) < 2e-3
    trained = Path(f"{folder}-trained")
    before, after = (load_file(of / "model.safetensors") for of in (folder, trained))
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])
    AutoModelForCausalLM.from_pretrained(trained)
