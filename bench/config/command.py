"""Name by which this program was started."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPT = "odysseus-bench"
"""The console command that the package installs (`[project.scripts]` in pyproject.toml)."""


def command() -> str:
    """Return the start of a command line, for help texts and errors: the console command, or
    ``python -m bench``."""
    return SCRIPT if Path(sys.argv[0]).name == SCRIPT else "python -m bench"
