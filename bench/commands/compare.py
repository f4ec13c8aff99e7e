"""``python -m bench compare``: this project's methods beside other implementations of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from bench import rows
from bench.config import checks, options
from bench.report import draw_matplotlib
from bench.report.charts import compare as compare_chart
from bench.runner import compare, launch
from methods.peers import plain
from methods.peers.checks import check, check_cell
from methods.peers.peer import PARTS
from methods.peers.registry import PEERS
from odysseus.config.run import RunConfig
from odysseus.parallel.mesh import pick_device

_BESIDE = "peer", "part", "pairs"
"""What makes a comparison the one it is, besides ours' cell."""
COLUMNS = (
    *(*_BESIDE, *rows.IDENTITY, "status", "error"),
    *("ratio_p50", "ratio_p20", "ratio_p80", "ours_ms_p50", "peer_ms_p50"),
    *("ours_comm_bytes", "peer_comm_bytes", "ours_peak_bytes", "peer_peak_bytes"),
    *("largest_difference", "tensors_checked", "differs", "mode", "device", "hardware"),
    *("torch_version", "git_commit", "git_dirty", "utc"),
)
"""Those of ours' cell are as in a row of `run`."""


def main(arguments: list[str]) -> int:
    """Compare with every peer asked for, in every cell of the grid that has no row yet; 1 if one
    failed.

    Raises:
        ValueError: a peer that is unknown or not installed, or a cell that cannot be started.
    """
    parser = options.parser(
        "compare",
        "Time a method and a peer's implementation of it, a step of one and a step of the other, "
        "in the same processes, after checking that both compute the same loss and gradients. "
        "The method is the peer's own.",
    )
    options.add_grid_options(parser)
    parser.add_argument(
        "--peers",
        type=str,
        default="all",
        help=f"all that compute in a cell's dtype on its device, or of {', '.join(PEERS)}.",
    )
    parser.add_argument(
        "--part",
        type=str,
        default="model",
        help="model, or blocks: transformer blocks alone (attention, MLP, their norms and "
        "residuals), without embedding, last norm, logits and loss, on the same random hidden "
        "states and gradient from above; AdamW, of the blocks' weights, is in a step either way.",
    )
    parser.add_argument("--pairs", type=int, default=10, help="Pairs of steps.")
    parser.add_argument(
        "--out",
        type=str,
        default="results/compare.csv",
        help="CSV file of ratios; the figure of all its rows goes beside it, as PNG and SVG.",
    )
    parser.add_argument(
        "--retry_failed", type=bool, default=False, help="Compare again where a row is not ok."
    )
    parsed = options.parse(parser, arguments)
    out = Path(parsed.out)
    if parsed.pairs < 1:
        raise ValueError(f"pairs is {parsed.pairs}; it must be at least 1")
    if parsed.part not in PARTS:
        raise ValueError(f"part is {parsed.part!r}; valid: {', '.join(PARTS)}")
    asked = list(options.expand(parsed))
    for run in asked:
        check_run(run)
    cells = [(name, run) for run in asked for name in names_of(parsed.peers, run)]
    for name in dict.fromkeys(name for name, _ in cells):
        check(name)
    cells = [(name, PEERS[name].ours(run)) for name, run in cells]
    for name, run in cells:
        checks.check(run)
        check_cell(name, run)
        checks.check_gpus(run, None)
    rows.check_writable(out, ("peer", "method", "status"))
    known = rows.keys(out, parsed.retry_failed, _BESIDE)
    by_key = {
        rows.key(_identity(name, run, parsed.pairs, parsed.part), _BESIDE): (name, run)
        for name, run in cells
    }
    left = [cell for key, cell in by_key.items() if key not in known]
    failed = 0
    for name, run in tqdm(left, disable=None):
        row = compared(name, run, parsed.pairs, parsed.part)
        rows.append(out, row, COLUMNS)
        print(line(row), flush=True)
        failed += row["status"] != "ok"
    save_figure(out)
    print(f"{len(by_key)} cells: {len(by_key) - len(left)} had rows, {failed} failed")
    return int(failed > 0)


def _identity(peer: str, run: RunConfig, pairs: int, part: str) -> dict[str, Any]:
    return rows.identity(run) | {"peer": peer, "pairs": pairs, "part": part}


def names_of(peers: str, run: RunConfig) -> list[str]:
    """The peers that are asked for: of all, those that compute in a run's dtype on its device, if
    any does."""
    if peers != "all":
        return peers.split(",")
    device = pick_device(run.device).type
    able = (n for n, peer in PEERS.items() if run.dtype in peer.dtypes and device in peer.devices)
    return [*able] or [*PEERS]


def save_figure(out: Path) -> None:
    """Draw the ratios of a CSV, as PNG and SVG beside it."""
    if not isinstance(chart := compare_chart.chart(pd.read_csv(out)), str):
        draw_matplotlib.save(draw_matplotlib.draw(chart), out.with_suffix(""))


def check_run(run: RunConfig) -> None:
    """Raise ValueError unless the peers can do what the run asks for."""
    for name, given, known in (
        ("ring_parallel_size", run.ring_parallel_size, 1),
        ("sequence_parallel_size", run.sequence_size, run.world_size),
        ("gradient_accumulation_steps", run.gradient_accumulation_steps, 1),
        ("dry_run", run.dry_run, False),
        ("data.pack", run.data.pack, False),
        ("model.implementation", run.model.implementation, "native"),
    ):
        if given != known:
            raise ValueError(f"{name} = {given} is not for compare; valid: {known}")
    plain.check(run)


def compared(name: str, run: RunConfig, pairs: int, part: str) -> dict[str, Any]:
    """One row."""
    measure = partial(compare.measured, peer=name, pairs=pairs, part=part)
    outcome = launch.run_workers(run, measure)
    about = _identity(name, run, pairs, part) | {"differs": PEERS[name].differs(part)}
    return about | rows.provenance() | outcome


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    of = f"{row['method']} beside {row['peer']}, {row['world_size']} ranks, {row['seq_len']} tokens"
    of += ", blocks alone" * (row["part"] == "blocks")
    if row["status"] != "ok":
        return f"{of}: {row['status']}: {row['error']}"
    spread = f"{row['ratio_p20']:.2f} to {row['ratio_p80']:.2f}"
    bytes_, peak = (row[f"ours_{x}_bytes"] / row[f"peer_{x}_bytes"] for x in ("comm", "peak"))
    return (
        f"{of}: {row['ratio_p50']:.2f} x its time ({spread}), {bytes_:.2f} x its bytes, "
        f"{peak:.2f} x its peak memory"
    )
