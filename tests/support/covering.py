"""A few combinations of options in which every pair of values occurs: a pairwise covering array.

`python -m tests.support.covering` writes tests/support/tricks.json; a test holds it against TRICKS.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.toggles import AHEAD, TOGGLES

FILE = Path(__file__).with_name("tricks.json")

RESHARD = {"reshard_after_forward": False}
TRICKS: dict[str, dict[str, dict[str, Any]]] = {
    "recompute": {
        name: TOGGLES[name]
        for name in ("activation_checkpointing", "activation_checkpoint_cpu_offload")
    },
    "mlp": {"tiled_mlp_compute": TOGGLES["tiled_mlp_compute"]},
    "loss": {name: tricks for name, tricks in TOGGLES.items() if name.startswith("tiled_loss")},
    "buckets": {"reduce_bucket_size": TOGGLES["reduce_bucket_size"]},
    "optimizer": {name: TOGGLES[name] for name in ("optimizer_offload", "optimizer_masters")},
    "parameters": {"parameter_offload": TOGGLES["parameter_offload"]},
    "gathers": {"kept_gathers": TOGGLES["kept_gathers"]},
    "zero": {
        "no_prefetch": {"zero_prefetch": False},
        "no_reshard": RESHARD,
        "overlap": AHEAD,
        "overlap_no_reshard": AHEAD | RESHARD,
    },
}
"""Fields of a run and, by name, the values that change them; "off" leaves a field as it is."""
FACTORS: dict[str, list[str]] = {name: ["off", *values] for name, values in TRICKS.items()}
FACTORS["world_size"] = ["2", "4"]


def allowed(row: Mapping[str, str]) -> bool:
    """Whether a run may have these values: the overlapping engine has no buckets."""
    return row.get("buckets", "off") == "off" or not row.get("zero", "off").startswith("overlap")


def pairs_of(row: Mapping[str, str]) -> set[tuple[tuple[str, str], ...]]:
    """Every two fields of a row with their values."""
    return set(itertools.combinations(row.items(), 2))


def every_pair(
    factors: Mapping[str, Sequence[str]], allowed: Callable[[Mapping[str, str]], bool]
) -> set[tuple[tuple[str, str], ...]]:
    """Every pair of values of two fields that a run may have."""
    return {
        pair
        for one, other in itertools.combinations(factors, 2)
        for values in itertools.product(factors[one], factors[other])
        if allowed(dict(pair := tuple(zip((one, other), values, strict=True))))
    }


def covering_array(
    factors: Mapping[str, Sequence[str]], allowed: Callable[[Mapping[str, str]], bool]
) -> list[dict[str, str]]:
    """Rows that hold every allowed pair: greedy, each row the one with the most new pairs.

    Candidates start from each missing pair and take, field by field, the value with the most pairs
    that are still missing (as in AETG: Cohen et al. 1997, section 3).
    """
    missing = every_pair(factors, allowed)
    rows = []
    while missing:
        best: dict[str, str] = {}
        for start in sorted(missing):
            row = dict(start)
            for name in sorted(factors, key=lambda name: -len(factors[name])):
                choices = [row | {name: v} for v in factors[name] if allowed(row | {name: v})]
                if name not in row:
                    row = max(choices, key=lambda row: len(_in_order(row, factors) & missing))
            best = max(best, row, key=lambda row: len(_in_order(row, factors) & missing))
        missing -= _in_order(best, factors)
        rows.append({name: best[name] for name in factors})
    return rows


def _in_order(
    row: Mapping[str, str], factors: Mapping[str, Any]
) -> set[tuple[tuple[str, str], ...]]:
    """The pairs of a row whose fields may be in any order."""
    return pairs_of({name: row[name] for name in factors if name in row})


def tricks_of(row: Mapping[str, str]) -> dict[str, Any]:
    """The changes to a run that a row of the array means."""
    changes: dict[str, Any] = {}
    for name, values in TRICKS.items():
        if row[name] != "off":
            changes |= values[row[name]]
    return changes


def committed() -> list[dict[str, str]]:
    """The rows of tests/support/tricks.json."""
    return json.loads(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(row) for row in covering_array(FACTORS, allowed))
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
