"""Advice on lengths and widths that are valid."""

from __future__ import annotations

from typing import Any

import pytest

from odysseus.config.advice import advice
from odysseus.config.nested import ModelOptions
from odysseus.config.run import RunConfig


def model(**overrides: Any) -> ModelOptions:
    return ModelOptions(**overrides)


@pytest.mark.parametrize(
    ("seq_len", "ranks", "better"),
    [
        (1024, 4, None),
        (2048, 4, None),
        (1028, 4, 1024),
        (1600, 4, 2048),
        (4, 4, 1024),
        (300, 1, 256),
    ],
)
def test_advice_is_about_256_times_the_size(seq_len: int, ranks: int, better: int | None) -> None:
    run = RunConfig(world_size=2 * ranks, sequence_parallel_size=ranks, seq_len=seq_len)
    run.check()
    said = (
        f"seq_len = {seq_len} is not a multiple of 256 x sequence_parallel_size = {256 * ranks}; "
        f"kernels are fastest at {better}"
    )
    assert advice(run) == ([] if better is None else [said])


@pytest.mark.parametrize(
    ("sizes", "scaled"),
    [
        ({"hidden_size": 512}, "1536, num_attention_heads = 16, num_key_value_heads = 8"),
        ({"hidden_size": 64}, "192, num_attention_heads = 2, num_key_value_heads = 1"),
        ({"hidden_size": 256}, ""),
        ({"hidden_size": 512, "intermediate_size": 64}, ""),
        ({"num_hidden_layers": 1}, ""),
    ],
)
def test_a_hidden_size_alone_keeps_the_other_sizes(sizes: dict[str, Any], scaled: str) -> None:
    """tiny has 256, 768, 8 and 4."""
    run = RunConfig(model=ModelOptions(**sizes))
    kept = "intermediate_size = 768, num_attention_heads = 8, num_key_value_heads = 4"
    said = (
        f"model.hidden_size = {sizes.get('hidden_size')} keeps the other sizes of tiny: {kept}; "
        f"in proportion would be: intermediate_size = {scaled}"
    )
    assert advice(run) == ([said] if scaled else [])
