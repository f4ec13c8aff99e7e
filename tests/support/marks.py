"""Cases that only the whole matrix (bash run_tests.sh --all) runs."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """Return a case of a parametrised test that the default suite leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)
