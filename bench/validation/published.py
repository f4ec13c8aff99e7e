"""Published step times: rows of a CSV file, each with its source and the flags of its run.

A row's columns:

- ``source``: who published it; ``where``: the file and commit, table or page.
- ``code``: the training code that was measured.
- ``unit`` and ``published``: the value, in s (seconds of one optimizer step) or tokens/s/GPU.
- ``settings``: flags of ``python -m bench run`` for the nearest run of this project's own code.
- ``replicas`` and ``zero``: copies of that run in data parallel and their ZeRO stage, 0 or 1, where
  the source's code does not cut weights over them; empty for one. (``world_size`` in the settings
  is that of one copy.)
- ``note``: what the run cannot say.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from odysseus.config.run import RunConfig

COLUMNS = ["source", "where", "code", "unit", "published", "settings", "replicas", "zero", "note"]
UNITS = "s", "tokens/s/GPU"


@dataclass(frozen=True)
class Published:
    """One published step time.

    Attributes:
        run: One replica's run.
        replicas: Copies of the run, see the module's docstring.
        zero: Their ZeRO stage.
        step_s: Seconds of one optimizer step.
    """

    source: str
    where: str
    code: str
    settings: str
    run: RunConfig
    replicas: int
    zero: int
    step_s: float
    note: str

    @property
    def gpus(self) -> int:
        return self.run.world_size * self.replicas


def read(path: Path, parse: Callable[[list[str]], RunConfig]) -> list[Published]:
    """Return the rows of a file.

    Args:
        parse: Makes a run from flags.

    Raises:
        ValueError: the file is no such CSV, or a row is not valid; the message has its line.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"rows = {path}: {error}; valid: a CSV of published rows") from None
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"rows = {path} has no columns {missing}; valid: {', '.join(COLUMNS)}")
    rows = []
    for line, row in enumerate(table.to_dict("records"), start=2):
        try:
            rows.append(_row({str(name): str(text) for name, text in row.items()}, parse))
        except ValueError as error:
            raise ValueError(f"rows = {path}, line {line}: {error}") from None
    return rows


def _row(row: dict[str, str], parse: Callable[[list[str]], RunConfig]) -> Published:
    run = parse(shlex.split(row["settings"]))
    replicas, zero = (_whole(name, row[name] or default) for name, default in _DEFAULTS.items())
    if replicas < 1 or zero not in (0, 1):
        raise ValueError(f"replicas = {replicas}, zero = {zero}; valid: 1 or more, and 0 or 1")
    if not run.dry_run or not run.hardware:
        raise ValueError("settings have no --dry_run true or no --hardware; valid: both")
    try:
        value = float(row["published"])
    except ValueError:
        value = 0.0
    if value <= 0 or row["unit"] not in UNITS:
        raise ValueError(
            f"published = {row['published']!r} {row['unit']}; "
            f"valid: a number in {' or '.join(UNITS)}"
        )
    step_s = value if row["unit"] == "s" else run.tokens_per_step / run.world_size / value
    texts = {name: row[name] for name in ("source", "where", "code", "settings", "note")}
    return Published(**texts, run=run, replicas=replicas, zero=zero, step_s=step_s)


_DEFAULTS = {"replicas": "1", "zero": "0"}


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} = {text!r}; valid: a whole number") from None
