"""The check of ``model.implementation``: the package transformers may not be installed."""

from __future__ import annotations

import importlib.util

from odysseus.config.run import RunConfig


def check(run: RunConfig) -> None:
    """Raise ValueError if a run asks for Transformers' model and cannot have it."""
    if run.model.implementation == "native":
        return
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(
            "model.implementation = transformers needs the package transformers "
            "(requirements-hf.txt); valid without it: native"
        )
    from odysseus import hf  # imports for seconds

    hf.check_toggles(run)
