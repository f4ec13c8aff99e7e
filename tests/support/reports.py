"""Tables of rows for the report, and the cards made from them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.report import catalogue, inputs
from tests.support.paths import RESULTS

EXAMPLE = RESULTS / "example.csv"

OF_CELLS = ("throughput", "mfu", "traffic", "memory", "strong_scaling", "weak_scaling")

EVIL = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>'


def cards_of(*paths: Path) -> dict[str, catalogue.Card]:
    given = inputs.read([*paths])
    return {c.name: c for c in catalogue.cards(given, inputs.drawable(given))}


def shipped() -> pd.DataFrame:
    """The example's rows as text."""
    return pd.read_csv(EXAMPLE, dtype=str, keep_default_na=False)


def on_gpus() -> pd.DataFrame:
    """The example's rows as if measured on GPUs, where each rank has a device of its own."""
    return shipped().assign(
        device="cuda", backend="nccl", hardware="a GPU", peak_flops_source="data sheet"
    )


def written(table: pd.DataFrame, path: Path) -> Path:
    table.to_csv(path, index=False)
    return path


def hostile() -> pd.DataFrame:
    """The example with markup in every column, formulas, and texts that are no numbers."""
    table = shipped()
    for number, name in enumerate(table.columns):
        table.loc[number % len(table), name] = EVIL
    table.loc[5, "model"] = "$\\frac{$ <b>x</b> \x07 \u2028 --> <!--"
    table["hardware"] = EVIL
    table.loc[31:, "ring_backend"] = EVIL
    for row, value in enumerate(["nan", "inf", "-inf", "1e308", "x", "-5"], 10):
        table.loc[row, ["tokens_per_s", "mfu", "comm_bytes_edge", "peak_memory_bytes"]] = value
        table.loc[row + 6, "seq_len"] = value
        table.loc[row + 12, "ring_parallel_size"] = value
    return table
