"""Find the configurations that come with the package: recipes and sweeps.

A clone has them in scripts/, an installed package in bench/shipped/.
"""

from __future__ import annotations

from os.path import exists, isfile  # false for a name that is too long; pathlib raises
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def folder() -> Path:
    """Return the folder that holds recipes/ and sweeps/."""
    installed = _PACKAGE / "shipped"
    return installed if installed.is_dir() else _PACKAGE.parent / "scripts"


def find(name: str) -> str:
    """Return the path of a ``--config`` file.

    A file that exists under `name` wins. If there is none, ``recipes/NAME.yml`` and
    ``sweeps/NAME.yml``, with or without ``scripts/`` before them, name a shipped file. Any other
    name is returned unchanged, for the reader of the file to refuse.
    """
    path = Path(name)
    parts = path.parts[1:] if path.parts[:1] == ("scripts",) else path.parts
    shipped = folder().joinpath(*parts)
    is_shipped = len(parts) == 2 and parts[0] in ("recipes", "sweeps") and isfile(shipped)
    return str(shipped) if is_shipped and not exists(path) else name
