"""Whether a run's model is this project's or Transformers', of which the latter may be missing."""

from __future__ import annotations

import importlib.util

from odysseus.config.run import RunConfig


def check(run: RunConfig) -> None:
    """Raise ValueError if a run wants Transformers' model where that cannot be."""
    if run.model.implementation == "native":
        return
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(
            "model.implementation = transformers needs the package transformers "
            "(requirements-hf.txt); valid without it: native"
        )
    if run.dry_run:
        raise ValueError("dry_run = true counts model.implementation = native only; valid: native")
    from odysseus import hf  # takes seconds

    hf.check_toggles(run)
