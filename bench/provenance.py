"""Origin of a row: versions, commit and time."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def columns() -> dict[str, Any]:
    """Columns that say with which versions, from which commit and when a row was made."""
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root)]
    # An installed package has no commit, but may lie inside another project's repository.
    is_clone = _output([*git, "rev-parse", "--show-toplevel"]) == str(root)
    commit = _output([*git, "rev-parse", "HEAD"]) if is_clone else ""
    code = ["--untracked-files=no", "--", ":/", ":(top,exclude)results"]
    changes = _output([*git, "status", "--porcelain", *code])
    return {
        "torch_version": torch.__version__,
        "git_commit": commit,
        "git_dirty": bool(changes) if commit else None,
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _output(command: list[str]) -> str:
    """The output of a command; empty where it fails or cannot be started."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
