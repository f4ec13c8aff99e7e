"""Configurations that are not known to be right on a split sequence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from odysseus.hf import families


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "gemma2"}, "Model is of model_type gemma2, not known to be right"),
        (
            {"rope_parameters": {"rope_type": "proportional"}},
            "Model has rope_type prop",
        ),
        ({"router_jitter_noise": 0.1}, "Model has router_jitter_noise = 0.1, which draws"),
    ],
    ids=["family", "rotary embedding", "noise"],
)
def test_what_is_refused(changed: dict[str, Any], message: str) -> None:
    known = {"model_type": "mixtral", "rope_parameters": {"rope_type": "yarn"}}
    families.check(SimpleNamespace(**known), "Model")
    with pytest.raises(ValueError, match=message):
        families.check(SimpleNamespace(**known | changed), "Model")
