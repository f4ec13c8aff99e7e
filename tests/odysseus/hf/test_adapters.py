"""LoRA on attention, MLP and head of a prepared model: adapters' gradients are those of PEFT on a
plain model in one process, in fp64, and nothing else has one."""

from __future__ import annotations

import pytest

from tests.support.hf_adapters import PLACES, adapter_errors
from tests.support.hf_models import ALL
from tests.support.marks import slow
from tests.support.ranks import run_ranks

TOGGLES = [{}, ALL, ALL | {"tiled_loss_bytes": 4 * 320 * 7}]


@pytest.mark.parametrize("world_size", [slow(1), 2, slow(4)])
def test_adapters(world_size: int) -> None:
    for found in run_ranks(adapter_errors, world_size, TOGGLES, fresh=True):
        assert len(found) == len(PLACES) * len(TOGGLES)
        wrong = {
            case: {name: error for name, error in errors.items() if not error < 1e-10}
            for case, errors in found.items()
        }
        assert {case: errors for case, errors in wrong.items() if errors} == {}
