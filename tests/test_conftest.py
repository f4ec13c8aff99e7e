"""GPUs are hidden from all tests but those that ask for them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import conftest


@pytest.mark.parametrize(
    ("chosen", "hidden"),
    [("not slow", True), ("alone and (slow or not slow)", True), ("not gpu", True), ("gpu", False)],
)
def test_gpus_are_hidden(chosen: str, hidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    config = SimpleNamespace(option=SimpleNamespace(markexpr=chosen))
    conftest.pytest_configure(cast(Any, config))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("" if hidden else "0,1")
