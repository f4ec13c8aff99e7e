"""A head that is written beside the embedding that it is tied to, as some small models come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from odysseus.config import hf_config
from odysseus.io.checkpoint import Checkpoint
from odysseus.parallel.sharding import huggingface_shapes
from tests.support.hf_configs import SIZES


def test_it_is_read_if_it_is_the_same(tmp_path: Path) -> None:
    """NaN and all, bit for bit."""
    config = SIZES | {"model_type": "llama", "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    architecture = hf_config.read(tmp_path)
    tensors = {name: torch.randn(shape) for name, shape in huggingface_shapes(architecture).items()}
    tensors["model.embed_tokens.weight"][0, 0] = torch.nan
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    Checkpoint(tmp_path).check(architecture)
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has a lm_head\.weight that differs from model\.embed"):
        Checkpoint(tmp_path).check(architecture)
