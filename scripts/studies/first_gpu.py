"""Measured cells beside the dry runs of the same cells: time, memory, and what offload costs.

    python -m scripts.studies.first_gpu ROWS DRY_RUNS

Prints one line per cell: milliseconds of a step and peak memory, measured and predicted, and their
ratio. A measured peak is the allocator's own on a GPU; it also has the workspace of kernels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from bench import rows

_NUMBERS = {"step_ms_p50": "step_ms", "peak_memory_bytes": "peak_bytes"}
_OFFLOAD = "activation_checkpoint_cpu_offload"
CELL = ["method", "seq_len", _OFFLOAD]


def beside(measured: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell that is in both tables: its numbers, their ratios, and the measured
    step over that of the same cell without offload.

    Args:
        measured: Rows of measured cells.
        predicted: Rows of the dry runs of the same cells.
    """
    tables = []
    for table in (measured, predicted):
        done = table[table["status"] == "ok"]
        tables.append(
            done[CELL].assign(**{to: done[of].astype(float) for of, to in _NUMBERS.items()})
        )
    both = tables[0].merge(tables[1], on=CELL, suffixes=("", "_predicted"))
    for name in _NUMBERS.values():
        both[f"{name}_ratio"] = both[f"{name}_predicted"] / both[name]
    kept = both[both[_OFFLOAD] != "True"].set_index(["method", "seq_len"])["step_ms"]
    at = pd.MultiIndex.from_frame(both[["method", "seq_len"]])
    both["over_without_offload"] = both["step_ms"].to_numpy() / kept.reindex(at).to_numpy()
    return both


def main(arguments: list[str]) -> int:
    measured, predicted = (rows.read(Path(argument)) for argument in arguments)
    table = beside(measured, predicted)
    if table.empty:
        print("no cell is both measured and predicted", file=sys.stderr)
        return 1
    print(table.to_string(index=False, float_format="{:.3f}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
