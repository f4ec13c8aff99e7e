"""Fill in the tables of measured rows in README.md and docs/.

python -m scripts.written.tables

A comment before a table names its kind and its files, as in
<!-- exponents of results/growth.csv -->.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report import accuracy
from bench.simulator.interval import NODES, TOKENS
from bench.validation import errors as validation_errors
from methods.peers.registry import PEERS
from scripts.studies import growth, overlap_summary

ROOT = Path(__file__).parents[2]
_VOCABULARY = {"false": "vocabulary whole", "true": "vocabulary cut"}
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("experts", "pairs", "performance", "validation")),
)
_TABLE_COMMENT = re.compile(
    r"(?P<comment><!-- (?P<what>\w+) of (?P<files>results/[^>]+) -->\n\n)(?:\|.*\n)*"
)


def filled(page: str) -> str:
    """Text of a page with its tables filled in from the files."""

    def written(table: re.Match[str]) -> str:
        files = [ROOT / file for file in table["files"].split()]
        return table["comment"] + _markdown(TABLES[table["what"]](*files))

    return _TABLE_COMMENT.sub(written, page)


def _markdown(table: pd.DataFrame) -> str:
    cells = [list(table.columns), ["---"] * len(table.columns), *table.fillna("").to_numpy()]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def ratios(*files: Path, with_spread: bool) -> pd.DataFrame:
    """Values of this project's methods over those of each peer, from rows of `bench compare`.

    Steps have the 20 % and 80 % quantiles of the pairs in brackets if asked for; bytes and memory
    are the least and the most of the rows.
    """
    rows = pd.concat([pd.read_csv(file) for file in files])
    rows = rows[rows["status"] == "ok"]
    rows = rows.sort_values(["world_size", "dtype"], ascending=[True, False])  # fp32 first
    ranks = rows["world_size"].map("{} ranks, ".format) if rows["world_size"].nunique() > 1 else ""
    rows = rows.assign(cell=ranks + rows["dtype"])
    lines = []
    for peer in PEERS:
        peer_rows = rows[rows["peer"] == peer]
        if peer_rows.empty:
            continue
        row = {"method": f"`{peer_rows['method'].iloc[0]}`", "peer": f"`{peer}`"}
        row |= dict.fromkeys(rows["cell"].unique(), "")
        row |= {cell["cell"]: _ratio(cell, with_spread) for cell in peer_rows.to_dict("records")}
        row["bytes sent"] = _range(peer_rows["ours_comm_bytes"] / peer_rows["peer_comm_bytes"])
        row["peak memory"] = _range(peer_rows["ours_peak_bytes"] / peer_rows["peer_peak_bytes"])
        lines.append(row)
    return pd.DataFrame(lines)


def _ratio(cell: dict[Any, Any], with_spread: bool) -> str:
    spread = f" ({cell['ratio_p20']:.2f} to {cell['ratio_p80']:.2f})" if with_spread else ""
    return f"{cell['ratio_p50']:.2f}{spread}"


def _range(numbers: pd.Series) -> str:
    least, most = f"{numbers.min():.2f}", f"{numbers.max():.2f}"
    return least if least == most else f"{least} to {most}"


def hidden(file: Path) -> pd.DataFrame:
    """Steps divided by the longer of compute and communication."""
    cells = pd.read_csv(file)
    links = cells["link"].str.removesuffix("mbit") + " Mbit/s"
    cells = cells.assign(links=links, method="`" + cells["method"] + "`")
    table = cells.pivot_table(index=["links", "method"], columns="way", values="ratio", sort=False)
    table = table[list(overlap_summary.WAYS.values())].map("{:.2f}".format, na_action="ignore")
    return _once(table.reset_index(), "links")


def exponents(file: Path) -> pd.DataFrame:
    """Exponents of each quantity over tokens and blocks, with the last doubling in brackets."""
    lines = []
    names = {"step_ms_p50": "step time", "flops": "model FLOPs"}
    names |= {"comm_bytes_total": "bytes sent", "peak_memory_bytes": "peak memory"}
    for over, rows in growth.read(file).items():
        by_method = growth.exponents(rows, over).to_dict("index")
        for name in growth.QUANTITIES:
            row = {"over": growth.AXES[over], "quantity": names[name]}
            for method, exponent in by_method.items():
                row[f"`{method}`"] = f"{exponent[name]:.2f} ({exponent[f'{name}, last']:.2f})"
            lines.append(row)
    return pd.DataFrame(lines)


def errors(file: Path) -> pd.DataFrame:
    """Errors of predicted steps, by the speed of links and in all."""
    rounds = pd.read_csv(file)
    lines = [_errors_line(links, group) for links, group in rounds.groupby("cluster", sort=False)]
    return pd.DataFrame([*lines, _errors_line("all", rounds)])


def published(file: Path) -> pd.DataFrame:
    """Errors of predictions of published steps, by GPU, source and length."""
    table = validation_errors.summary(pd.read_csv(file))
    off = ["bias", "10 %", "90 %"]
    return table.assign(**table[off].replace("-", "\N{MINUS SIGN}", regex=True))


def intervals(file: Path) -> pd.DataFrame:
    """Quantiles of published by predicted steps, by nodes and tokens of a rank."""
    table = validation_errors.intervals(pd.read_csv(file))
    nodes = ["one", *(f"{a + 1} to {b}" for a, b in pairwise(NODES)), f"over {NODES[-1]}"]
    tokens = [f"under {TOKENS[0]:,}", *(f"{a:,} to {b - 1:,}" for a, b in pairwise(TOKENS))]
    tokens.append(f"{TOKENS[-1]:,} and more")
    lines = [
        {
            "nodes": nodes[line["kind"][0]],
            "tokens of a rank in a micro step": tokens[line["kind"][1]],
            "published rows": str(line["rows"]),
            "`step_ms_low` over the prediction": f"{line['low']:.2f}",
            "`step_ms_high` over the prediction": f"{line['high']:.2f}",
        }
        for line in table.to_dict("records")
    ]
    return _once(pd.DataFrame(lines), "nodes")


def predicted(file: Path) -> pd.DataFrame:
    """Predicted steps of methods by length, with the vocabulary whole and cut."""
    rows = _in_words(pd.read_csv(file).fillna({"vocab_parallel": "false"}))
    rows = rows.assign(
        method="`" + rows["method"] + "`",
        vocabulary=rows["vocab_parallel"].astype(str).str.lower().replace(_VOCABULARY),
    )
    table = rows.pivot_table(
        index=["tokens", "method"], columns="vocabulary", values="text", aggfunc="first", sort=False
    )
    return _once(table[[*_VOCABULARY.values()]].reset_index(), "tokens")


def second_axis(file: Path) -> pd.DataFrame:
    """Predicted steps by length, with a tensor axis of each size."""
    rows = _in_words(pd.read_csv(file).fillna({"tensor_parallel_size": 1}))
    size = "t = " + rows["tensor_parallel_size"].map("{:.0f}".format)
    rows = rows.assign(size=size)
    table = rows.pivot_table(
        index="tokens", columns="size", values="text", aggfunc="first", sort=False
    )
    return table.reset_index()


def experts(file: Path) -> pd.DataFrame:
    """Predicted steps of models with experts, by length, method and unequal load."""
    rows = _in_words(pd.read_csv(file).copy())
    unequal = rows.get("router_load", pd.Series(index=rows.index, dtype=str))
    load = (", " + unequal).fillna("")
    rows = rows.assign(method="`" + rows["method"] + "`" + load, model="`" + rows["model"] + "`")
    table = rows.pivot_table(
        index=["tokens", "method"], columns="model", values="text", aggfunc="first", sort=False
    )
    return _once(table.reset_index(), "tokens")


def _in_words(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with their step, bytes and peak as one text, and their tokens as text."""
    texts = [
        f"{row['step_ms_p50']:,.0f} ms, {row['comm_bytes_total'] / 1e9:.1f} GB, "
        f"{row['peak_memory_bytes'] / 1e9:.1f} GB"
        for row in rows.to_dict("records")
    ]
    return rows.assign(text=texts, tokens=rows["seq_len"].map("{:,}".format))


def _errors_line(links: Any, rounds: pd.DataFrame) -> dict[str, str]:
    cells, wrong = accuracy.medians(rounds), len(accuracy.misordered(rounds))
    off, round_errors = cells["error"], rounds["error"]
    return {
        "links": str(links).removeprefix("links of ").removeprefix("links "),
        "cells": str(len(cells)),
        "mean error": f"{100 * off.abs().mean():.1f} %",
        "worst": f"{100 * max(off, key=abs):+.1f} %".replace("-", "\N{MINUS SIGN}"),
        "over 15 %": str((off.abs() > 0.15).sum() or "none"),
        "pairs in another order, of those measured over 10 % apart": str(wrong or "none"),
        "single rounds: mean error": f"{100 * round_errors.abs().mean():.1f} %",
        "over 15 %, of all": f"{(round_errors.abs() > 0.15).sum()} of {len(round_errors)}",
    }


def _once(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The table with a column's value left out where it repeats the row above."""
    return table.assign(**{column: table[column].where(table[column] != table[column].shift(), "")})


TABLES: dict[str, Callable[..., pd.DataFrame]] = {
    "ratios": partial(ratios, with_spread=True),
    "medians": partial(ratios, with_spread=False),
    "hidden": hidden,
    "exponents": exponents,
    "errors": errors,
    "predicted": predicted,
    "experts": experts,
    "published": published,
    "intervals": intervals,
    "second_axis": second_axis,
}


def main() -> None:
    """Write the tables into their pages."""
    for page in PAGES:
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
