"""Heads with a bias, an adapter, a hook or another forward: the loss and every gradient are those
of plain Transformers, tiled or not."""

from __future__ import annotations

import pytest

from tests.support.hf_heads import HEADS, head_errors, preference_errors
from tests.support.marks import slow
from tests.support.ranks import run_ranks

TOGGLES = [
    {},  # tiles by default wherever the sequence is split
    {"tiled_loss_engine": "checkpoint", "tiled_loss_bytes": 4 * 320 * 5},
    {"tiled_loss_bytes": 4 * 320 * 7, "activation_checkpoint_cpu_offload": True},
]


@pytest.mark.parametrize("world_size", [slow(1), 2, slow(4)])
def test_log_probabilities_of_tokens(world_size: int) -> None:
    toggles = [*TOGGLES, {"tiled_loss_compute": False}]
    for found in run_ranks(preference_errors, world_size, toggles):
        wrong = [{n: error for n, error in errors.items() if not error < 1e-10} for errors in found]
        assert wrong == [{}] * len(toggles)


@pytest.mark.parametrize("world_size", [slow(1), 2, slow(4)])
def test_any_head_is_right(world_size: int) -> None:
    for found in run_ranks(head_errors, world_size, TOGGLES, fresh=True):
        assert len(found) == len(HEADS) * len(TOGGLES)
        wrong = {
            case: {name: error for name, error in errors.items() if not error < 1e-10}
            for case, errors in found.items()
        }
        assert {case: errors for case, errors in wrong.items() if errors} == {}
