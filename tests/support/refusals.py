"""Runs that the check of a configuration refuses, with the error of each."""

from __future__ import annotations

import pytest

from methods import METHODS
from odysseus.config.run import RunConfig


def check(run: RunConfig) -> None:
    run.check()
    METHODS[run.method].check(run)


def refusal(run: RunConfig) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011, the callers compare its text
        check(run)
    return str(error.value)
