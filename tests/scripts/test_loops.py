"""The loops for users of Transformers' trainer, of Accelerate and of TRL run as they are written,
and train the same weights on any number of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.hf_families import CONFIGS
from tests.support.hf_tokenizer import tokenizer
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, and datasets of texts of 3 to 12 words and of pairs."""
    folder = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(CONFIGS["qwen3"], dtype=torch.float32).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    words = 2 * ["the", "sea", "is", "deep", "is", "the", "sea", "the", "deep", "sea", "is"]
    texts = [words[i : 2 * i + 3] for i in range(11)]
    pairs = [{"prompt": t[:2], "chosen": t[2:], "rejected": t[::-1]} for t in texts]
    rows = {"text": [{"text": t} for t in texts], "pairs": pairs}
    for name, of in rows.items():
        lines = [json.dumps({key: " ".join(words) for key, words in row.items()}) for row in of]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def trained(loop: str, ranks: int, folder: Path, out: Path) -> dict[str, torch.Tensor]:
    """Run a loop in fp64, and return the weights that it saves."""
    call = f"from scripts.loops import {loop}; {loop}.main({str(folder)!r}, "
    data = folder / ("pairs.jsonl" if loop == "dpo" else "text.jsonl")
    call += f"{str(data)!r}, {str(out)!r}, seq_len=64, dtype='fp64')"
    script = out.with_suffix(".py")
    script.write_text(call)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks), str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(out / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["trainer", "accelerated", "sft", "dpo"])
def test_a_loop_trains_alike_on_any_number_of_ranks(
    loop: str, folder: Path, tmp_path: Path
) -> None:
    """Weights agree to what Transformers' norms round."""
    before = load_file(folder / "model.safetensors")
    alone, *others = (trained(loop, ranks, folder, tmp_path / f"of_{ranks}") for ranks in (1, 2, 4))
    assert any(not torch.equal(alone[name].float(), before[name]) for name in before)
    for weights in others:
        assert weights.keys() == alone.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, alone[name], rtol=0, atol=1e-6)
