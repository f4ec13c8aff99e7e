"""Liger's kernels equal this project's: each alone, in the whole model, and in two ranks of it.

Triton's interpreter runs them here, in fp32, in two separate processes: it must be chosen before
triton is imported, and the fork server of the other tests has imported triton already. B batch,
S tokens, H heads, K elements per head.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from odysseus.config.architecture import Architecture
from odysseus.config.run import ModelOptions
from odysseus.model import liger
from odysseus.model.decoder import MLP, Attention, CausalLM, Tricks
from odysseus.model.kernels import TORCH, Kernels, choose_kernels
from odysseus.model.layers import Vocabulary
from odysseus.model.loss import Loss, whole_logits
from tests.support.liger import CPU, KERNELS, TOLERANCE, interpreting, kernel_errors, largest_errors
from tests.support.numerics import ROUNDINGS, random


@pytest.fixture(scope="module")
def interpreters() -> Iterator[ProcessPoolExecutor]:
    with interpreting(2) as pool:
        yield pool


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_the_projects(interpreters: ProcessPoolExecutor, name: str) -> None:
    errors = interpreters.submit(kernel_errors, name, torch.float32, CPU).result()
    assert max(errors) < ROUNDINGS * torch.finfo(torch.float32).eps / 2


def changed_and_kept(name: str) -> tuple[list[bool], int]:
    """Return which inputs a kernel overwrote, and how many elements it saved for backward."""
    lent, _, inputs = KERNELS[name]
    given = [x.float().requires_grad_() for x in inputs]
    before = [x.detach().clone() for x in given]
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = lent(*given)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))
    out.sum().backward()
    changed = [not torch.equal(x, y) for x, y in zip(given, before, strict=True)]
    return changed, sum(kept.values())


@pytest.mark.parametrize(
    ("name", "changed", "kept"),
    [
        ("rms_norm", [False, False], 240 + 6 + 40),  # x, weight, a number a row.
        ("swiglu", [True], 120),  # Its input, in which backward leaves the gradient.
        ("rotary_of_grouped_queries", [False], 2 * 2 * 5 * 3),  # The table.
        ("rotary_of_one_head", [False], 2 * 2 * 5 * 3),
        ("loss", [False, False], 11 * 8 + 19 * 8),  # The gradients.
    ],
)
def test_what_is_written_over_and_kept(
    interpreters: ProcessPoolExecutor, name: str, changed: list[bool], kept: int
) -> None:
    assert interpreters.submit(changed_and_kept, name).result() == (changed, kept)


ARCHITECTURE = Architecture(
    vocab_size=19,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)
VARIANTS = {
    "llama": ARCHITECTURE,
    "qwen_tied": replace(ARCHITECTURE, use_qk_norm=True, tie_word_embeddings=True),
}


def model_results(variant: str, lent: Kernels, loss: Loss, tricks: Tricks) -> list[Tensor]:
    """The loss and every gradient of two samples of 5 tokens: tiles of 3 and 2 in the MLP."""
    architecture = VARIANTS[variant]
    model = CausalLM(
        architecture,
        lambda: Attention(architecture, lent),
        lambda: MLP(architecture, lent),
        lent,
        tricks=tricks,
        vocabulary=Vocabulary(architecture.vocab_size, architecture.vocab_size, loss=loss),
    )
    dtype = torch.float64 if lent is TORCH else torch.float32
    with torch.no_grad():
        for parameter in model.to(dtype).parameters():
            parameter.copy_(random(*parameter.shape).float() / 2)
    input_ids = torch.arange(10).reshape(2, 5)
    labels = torch.where(input_ids % 5 == 3, -100, input_ids + 1)
    result = model(input_ids, torch.arange(5)[None], labels)
    return [result.detach(), *torch.autograd.grad(result, list(model.parameters()))]


def model_errors(variant: str, recompute: bool, tile_mlp: bool) -> list[float]:
    """Return errors of loss and gradients with all of Liger's kernels against plain fp64 ones."""
    lent = choose_kernels(ModelOptions(type="liger"), CPU, torch.float32)
    loss = partial(liger.fused_linear_cross_entropy, tile=3)
    found = model_results(variant, lent, loss, Tricks(tile_mlp=tile_mlp, recompute=recompute))
    return largest_errors(found, model_results(variant, TORCH, whole_logits, Tricks()))


@pytest.mark.parametrize(
    ("variant", "recompute", "tile_mlp"),
    [
        ("llama", False, False),
        ("llama", False, True),
        ("llama", True, False),
        ("llama", True, True),
        ("qwen_tied", True, True),
    ],
)
def test_models_equal(
    interpreters: ProcessPoolExecutor, variant: str, recompute: bool, tile_mlp: bool
) -> None:
    errors = interpreters.submit(model_errors, variant, recompute, tile_mlp).result()
    assert max(errors) < TOLERANCE
