"""Four lines: which method sends least, holds least, is fastest here, is predicted fastest there.

python -m scripts.answer MEASURED.csv PREDICTED.csv
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from bench import rows
from bench.report import spread

MIB = 2**20
_NUMBERS = ("world_size", "seq_len", "ring_parallel_size", "comm_bytes_total", "peak_memory_bytes")
_TIMES = ("step_ms_p50", "round_ms_low", "round_ms_high")


def read(path: Path) -> pd.DataFrame:
    """Return the last good row of each method without a ring, on the most ranks of the file, at its
    shortest and its longest length.

    Raises:
        ValueError: the file has no such row.
    """
    table = rows.read(path).reindex(columns=rows.COLUMNS, fill_value="")
    table = table[(table["status"] == "ok") & (table["ring_parallel_size"] == "1")]
    if table.empty:
        raise ValueError(f"{path} has no row with status ok and without a ring")
    for name in (*_NUMBERS, *_TIMES):
        table[name] = pd.to_numeric(table[name])
    table = table[table["world_size"] == table["world_size"].max()]
    table = table.drop_duplicates(["method", "seq_len"], keep="last")
    return table[table["seq_len"].isin([table["seq_len"].min(), table["seq_len"].max()])]


def lines(measured: pd.DataFrame, predicted: pd.DataFrame) -> Iterator[str]:
    """Yield the four lines."""
    here = f"{_ranks(measured)}, {measured['device'].iloc[0]}"
    there = f"{_ranks(predicted)}, {predicted['hardware'].iloc[0]}"
    model = predicted["model"].iloc[0]
    yield f"sends least ({here}): {_answers(measured, _least('comm_bytes_total'))}"
    yield f"holds least ({here}): {_answers(measured, _least('peak_memory_bytes'))}"
    yield f"fastest (measured: {here}): {_answers(measured, fastest)}"
    yield f"fastest (predicted: {there}, {model}): {_answers(predicted, fastest)}"


def fastest(data: pd.DataFrame) -> str:
    """Return the method with the shortest median step, and those that share its place."""
    ordered = data.sort_values("step_ms_p50")
    best = ordered.iloc[0]
    places = spread.places(ordered)
    names = " or ".join(ordered.loc[places == "1", "method"]) or best["method"]
    noisy = ", noisy" * (best["noisy"] == "True")
    return f"{names} ({best['step_ms_p50']:,.0f} ms{noisy})"


def _least(column: str) -> Callable[[pd.DataFrame], str]:
    def least(data: pd.DataFrame) -> str:
        names = " and ".join(data.loc[data[column] == data[column].min(), "method"])
        return f"{names} ({data[column].min() / MIB:,.1f} MiB)"

    return least


def _answers(data: pd.DataFrame, answer: Callable[[pd.DataFrame], str]) -> str:
    """Return the answer at every length."""
    return "; ".join(
        f"{answer(alike)} at {length:,.0f} tokens" for length, alike in data.groupby("seq_len")
    )


def _ranks(data: pd.DataFrame) -> str:
    return f"{data['world_size'].iloc[0]:.0f} ranks"


def main(names: list[str]) -> int:
    """Print the lines; return 0, or 1 if a file has no rows for them."""
    try:
        for line in lines(*(read(Path(name)) for name in names)):
            print(line)
    except ValueError as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
