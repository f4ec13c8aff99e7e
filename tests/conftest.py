"""Fixtures of every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ranks import close_worlds


@pytest.fixture(scope="module", autouse=True)
def ranks_of_this_file() -> Iterator[None]:
    """End the ranks that the tests of a file shared."""
    yield
    close_worlds()
