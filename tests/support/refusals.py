"""Runs and commands that are refused, with the error of each."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from bench.__main__ import main
from bench.runner import processes
from methods import METHODS
from odysseus.config.run import RunConfig
from tests.support.small_runs import nothing_starts


def check(run: RunConfig) -> None:
    run.check()
    METHODS[run.method].check(run)


def refusal(run: RunConfig) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011, the callers compare its text
        check(run)
    return str(error.value)


def refused_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line with which a command refuses its arguments and starts nothing."""
    with patch.object(processes, "run_ranks", nothing_starts):
        assert main([*arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line
