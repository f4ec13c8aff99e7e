"""verify against plain Transformers: faults that this project's own reference would share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from bench.__main__ import main
from bench.runner import launch, verify
from odysseus.config.run import DataOptions, ModelOptions, RunConfig
from odysseus.training import trainer
from odysseus.training.optimizer import ShardedAdamW
from tests.support.marks import slow

MODEL = ModelOptions(hidden_size=32, intermediate_size=48, num_hidden_layers=2)
RUN = RunConfig(
    model=MODEL, method="odysseus", world_size=2, seq_len=72, dtype="fp64", steps=3,
    data=DataOptions(repeat=True),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def trained_once() -> Iterator[None]:
    """Train each reference once."""
    with patch.object(launch, "run_workers", cache(launch.run_workers)):
        yield


def no_causal_mask(run: RunConfig) -> dict[str, Any]:
    attention = F.scaled_dot_product_attention

    def everywhere(*tensors: Any, is_causal: bool, **options: Any) -> torch.Tensor:
        return attention(*tensors, is_causal=False, **options)

    with patch.object(F, "scaled_dot_product_attention", everywhere):
        return verify.history(run)


def larger_gradients(run: RunConfig) -> dict[str, Any]:
    """Every gradient × 1.001."""
    losses = trainer._token_losses

    def larger(*given: Any) -> torch.Tensor:
        loss = losses(*given)
        return loss * 1.001 - loss.detach() * 0.001

    with patch.object(trainer, "_token_losses", larger):
        return verify.history(run)


def skipped_tensor(run: RunConfig) -> dict[str, Any]:
    """An optimizer that leaves one weight as it is."""
    update = ShardedAdamW.update

    def skip(optimizer: ShardedAdamW) -> None:
        optimizer.parameters[3].grad = None
        update(optimizer)

    with patch.object(ShardedAdamW, "update", skip):
        return verify.history(run)


def no_epsilon(run: RunConfig) -> dict[str, Any]:
    with patch.object(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=0.0)):
        return verify.history(run)


FAULTS = (no_causal_mask, larger_gradients, skipped_tensor, no_epsilon)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_of_both_sides_is_detected(fault: Any) -> None:
    verdict = verify.verify(RUN, fault, "transformers")
    assert not verdict.passed, verdict.largest


@pytest.mark.parametrize(
    "options",
    [
        {},
        slow({"method": "tp", "world_size": 4, "sequence_parallel_size": 2}),
        slow({"data": DataOptions(pack=True, repeat=True), "method": "ulysses"}),
        slow({"dtype": "fp32", "micro_batch_size": 2}),
        slow({"dtype": "bf16"}),
        slow({"model": replace(MODEL, use_qk_norm=True, tie_word_embeddings=True)}),
    ],
)
def test_what_is_right_agrees(options: dict[str, Any]) -> None:
    verdict = verify.verify(replace(RUN, **options), reference="transformers")
    assert verdict.passed, verdict.largest


def test_the_verb_names_the_reference(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--method tp_sp --world_size 2 --seq_len 72 --dtype fp64 --steps 2 --data.repeat true"
    flags += " --model.hidden_size 32 --model.intermediate_size 48 --model.num_hidden_layers 2"
    given = ["verify", *flags.split(), "--out", str(tmp_path / "verify.csv")]
    assert main([*given, "--reference", "transformers"]) == 0
    said = capsys.readouterr().out
    assert "against plain Transformers in one process: tiny(" in said
    assert "agree over 2 steps" in said


def test_what_the_verb_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--reference", "torch"]) == 2
    assert "reference is 'torch'; valid: native, transformers" in capsys.readouterr().err
    flags = ["--model.attention_output_bias", "true", "--model.attention_bias", "false"]
    assert main(["verify", "--reference", "transformers", *flags]) == 2
    assert "no model of Transformers has these biases" in capsys.readouterr().err
